"""Data sets of images that torchvision knows by name."""

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vae_anomaly.data.image_set import ImageSet
from vae_anomaly.data.images import Images, class_labels
from vae_anomaly.errors import DataError, look_up

__all__ = ["NAMED", "Named", "read_named"]

_SPLITS = {"train": ("train",), "test": ("test",)}
_BOTH = ("train", "test")


class Named(NamedTuple):
    """Where a data set is, and what its classes are called."""

    dataset: str
    """Class in ``torchvision.datasets``."""
    source: str
    classes: tuple[str, ...]
    files: Mapping[str, tuple[str, ...]]
    """What has to be in the root folder for each split."""


def read_named(
    name: str,
    *,
    root: str | os.PathLike[str],
    normal_class: str | int | Sequence[str | int] = (),
    split: str | None = None,
    download: bool = True,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
) -> Images:
    """Images of a data set in ``NAMED``, held in memory as bytes.

    Parameters
    ----------
    name : str
        A key of ``NAMED``.
    root : str or path
        Folder of the files, laid out as torchvision does.
    normal_class : str, int, or sequence of them
        Names or numbers of the classes that count as normal. Nothing is labelled without.
    split : {"train", "test"}, optional
        Both, train first, unless given.
    download : bool
        Whether files that are not there may be fetched.
    size, channels : optional
        As for :func:`read_images`.

    Raises
    ------
    DataError
        If files are missing and can't be fetched; the message says which, and where they belong.

    Examples
    --------
    >>> import tempfile
    >>> read_named("kmnist", root=tempfile.mkdtemp(), normal_class="no")
    Traceback (most recent call last):
    vae_anomaly.errors.DataError: kmnist has no class 'no'. Its classes are 0 'o', 1 'ki', 2 'su', 3 'tsu', 4 'na', \
5 'ha', 6 'ma', 7 'ya', 8 're', 9 'wo'.
    """
    entry = look_up("data set", name, NAMED)
    splits = _BOTH if split is None else look_up("split", split, _SPLITS)
    values = [normal_class] if isinstance(normal_class, str | int) else list(normal_class)
    normal = [_class_name(value, name, entry.classes) for value in values]
    parts = [_loaded(name, entry, os.fspath(root), part, download) for part in splits]
    X = ImageSet.from_array(np.concatenate([pixels for pixels, _ in parts]), size=size, channels=channels, where=name)
    kinds = np.array(entry.classes, dtype=object)[np.concatenate([targets for _, targets in parts])]
    return Images(
        X=X,
        y=class_labels(kinds, normal, name) if normal else None,
        ids=X.names,
        id_name="row",
        name=name,
        kinds=kinds,
        splits=np.repeat(np.array(splits, dtype=object), [len(pixels) for pixels, _ in parts]),
    )


def _class_name(value: str | int, name: str, classes: Sequence[str]) -> str:
    names = {known.lower(): known for known in classes} | {str(i): known for i, known in enumerate(classes)}
    if str(value).lower() not in names:
        known = ", ".join(f"{i} {known!r}" for i, known in enumerate(classes))
        raise DataError(f"{name} has no class {value!r}. Its classes are {known}.")
    return names[str(value).lower()]


def _loaded(
    name: str, entry: Named, root: str, split: str, download: bool
) -> tuple[NDArray[np.uint8], NDArray[np.intp]]:
    """Images of shape (n, h, w[, c]) and the numbers of their classes."""
    from torchvision import datasets

    kind = getattr(datasets, entry.dataset)
    try:
        if entry.dataset == "SVHN":
            found = kind(root, split=split, download=download)
            pixels, targets = np.moveaxis(found.data, 1, -1), found.labels
        else:
            found = kind(root, train=split == "train", download=download)
            pixels, targets = found.data, found.targets
    except Exception as error:  # the network, the disk, an archive, a check sum or the format of a file
        raise _not_loaded(name, entry, root, split, download, error) from None
    return np.asarray(pixels), np.asarray(targets, dtype=np.intp)


def _not_loaded(name: str, entry: Named, root: str, split: str, download: bool, error: Exception) -> DataError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[-1].rstrip(".") if lines else type(error).__name__
    missing = [file for file in entry.files[split] if not os.path.isfile(os.path.join(root, file))]
    if not missing:
        return DataError(f"{name} in {root} can't be read: {said}. Delete its files there and fetch them again.")
    why = f"They could not be fetched: {said}" if download else "They were not to be fetched"
    return DataError(
        f"{name} is not in {root}: it lacks {', '.join(missing)}. {why}. "
        f"Fetch them from {entry.source} and put them there, or name the folder that has them."
    )


def _idx_files(folder: str) -> dict[str, tuple[str, ...]]:
    stems = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
    # torchvision wants all of them for either split.
    return dict.fromkeys(_BOTH, tuple(f"{folder}/raw/{stem}" for stem in stems))


def _cifar_files(*names: str) -> dict[str, tuple[str, ...]]:
    return dict.fromkeys(_BOTH, tuple(f"cifar-10-batches-py/{name}" for name in names))


_DIGITS = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")

NAMED: dict[str, Named] = {
    "mnist": Named("MNIST", "https://ossci-datasets.s3.amazonaws.com/mnist/", _DIGITS, _idx_files("MNIST")),
    "fashion-mnist": Named(
        "FashionMNIST",
        "https://github.com/zalandoresearch/fashion-mnist",
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        _idx_files("FashionMNIST"),
    ),
    "kmnist": Named(
        "KMNIST",
        "http://codh.rois.ac.jp/kmnist/",
        ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
        _idx_files("KMNIST"),
    ),
    "cifar10": Named(
        "CIFAR10",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        _cifar_files(*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"),
    ),
    "svhn": Named(
        "SVHN",
        "http://ufldl.stanford.edu/housenumbers/",
        _DIGITS,
        {"train": ("train_32x32.mat",), "test": ("test_32x32.mat",)},
    ),
}
