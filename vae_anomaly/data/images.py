"""Images in files, folders, arrays and lists of paths."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from vae_anomaly.data.arrow import Options, frame_of
from vae_anomaly.data.decoding import SUFFIXES
from vae_anomaly.data.image_arrays import Arrays, read_idx, read_npy, read_npz
from vae_anomaly.data.image_set import ImageSet, positions_of
from vae_anomaly.data.table import known_suffix, labels, no_such_column
from vae_anomaly.data.tabular import READERS
from vae_anomaly.errors import DataError

__all__ = ["IMAGE_READERS", "Images", "class_labels", "files_below", "read_images"]


@dataclass(frozen=True, eq=False)
class Images:
    """Images to train on or to score, and where each of them came from: what :class:`Data` is for tables.

    Parameters
    ----------
    X : ImageSet
        The images, of one shape.
    y : ndarray of int8 or None
        1 for an anomaly, 0 for normal, -1 where the label is missing. None without labels.
    ids : ndarray
        Paths relative to the folder that was read, with ``/`` between their parts; 1-based numbers for an array.
    id_name : str
        ``"path"`` or ``"row"``.
    name : str
        What messages call the data.
    kinds : ndarray of text
        The class or the defect, empty where unknown.
    splits : ndarray of text
        ``"train"``, ``"test"``, or empty.
    masks : tuple of str or None, optional
        For each image the path of an image that is white where the defect is, or None. None if there are no masks.
    stray_masks : tuple of str
        Paths of masks that belong to no image.
    n_ignored : int
        Files that were passed over because they are no images.

    Examples
    --------
    >>> X = ImageSet.from_array(np.zeros((3, 8, 8), np.uint8))
    >>> text = np.array(["", "", ""], dtype=object)
    >>> images = Images(X, np.array([0, 1, 0], np.int8), X.names, "row", "pumps.npy", text, text)
    >>> images.locate(2)
    'pumps.npy, image 3'
    >>> images.normal().ids
    array([1, 3])
    """

    X: ImageSet
    y: NDArray[np.int8] | None
    ids: NDArray[Any]
    id_name: str
    name: str
    kinds: NDArray[np.object_]
    splits: NDArray[np.object_]
    masks: tuple[str | None, ...] | None = None
    stray_masks: tuple[str, ...] = ()
    n_ignored: int = 0

    def __len__(self) -> int:
        return len(self.X)

    @property
    def kept(self) -> pd.DataFrame:
        """What travels along with the images: class or defect."""
        return pd.DataFrame({"kind": self.kinds})

    @property
    def dropped(self) -> tuple[str, ...]:
        """Images have no columns to leave out."""
        return ()

    def locate(self, i: int) -> str:
        """Path of image ``i``, or its number in an array."""
        path = self.X.path(i)
        return f"{self.name}, image {self.X.names[i]}" if path is None else path

    def normal(self) -> "Images":
        """The images labelled normal, or all images where there are no labels."""
        return self if self.y is None else self.take(self.y == 0)

    def take(self, chosen: ArrayLike) -> "Images":
        """The images that a boolean mask or an array of positions names; nothing is decoded."""
        X = self.X.take(chosen)
        index = positions_of(chosen, len(self))
        return replace(
            self,
            X=X,
            y=None if self.y is None else self.y[index],
            ids=self.ids[index],
            kinds=self.kinds[index],
            splits=self.splits[index],
            masks=None if self.masks is None else tuple(self.masks[i] for i in index),
        )

    def fingerprint(self) -> str:
        """SHA-256 over the shape of an image and the stored bytes, in hex; the order of the images counts."""
        return self.X.fingerprint()


def read_images(
    path: str | os.PathLike[str],
    *,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    label: str | None = None,
    normal_class: str | int | Sequence[str | int] = (),
    path_column: str = "path",
    n_workers: int | None = None,
    cache_gb: float = 0.0,
) -> Images:
    """Images of one shape, with what is known about each of them; nothing is decoded yet.

    Parameters
    ----------
    path : str or path
        - An image: PNG, JPEG, BMP, TIFF or WebP.
        - A folder of images, read with its subfolders by name. Each first subfolder is a class.
        - A folder in the layout of MVTec AD (``train/good``, ``test/<defect>``, ``ground_truth/<defect>``), or the
          ``train`` or ``test`` in one: it is recognised, and splits, labels and masks are filled in.
        - An .npy or .npz file: see :meth:`ImageSet.from_array`. An .npz file names the images ``X`` or ``images``, and
          their labels ``y`` or ``labels``.
        - An IDX file, as MNIST has them, with or without .gz. Labels are found beside it by their usual name.
        - A CSV, TSV or Parquet file with a column of paths, relative to the file.
    size : int or (int, int), optional
        Height and width that all images are resized to, without regard to their aspect and without cropping. Unless
        given, their own if they have one in common and both sides have 8 to 256 pixels; else 256 for the longer side of
        the median aspect, and a multiple of 8 for the shorter one.
    channels : {1, 3}, optional
        1 for grey, unless one of 64 images looked at has colour.
    label : str, optional
        Column of a table, or array of an .npz file, that tells anomalies from normal images.
    normal_class : str, int, or sequence of them
        Classes or labels of normal images. Without it, labels 0 and 1 are normal and anomaly; other classes are kept in
        ``kinds`` and nothing is labelled, except that ``good`` is normal in the layout of MVTec AD.
    path_column : str
        Column of a table that holds the paths.
    n_workers : int, optional
        Threads that decode.
    cache_gb : float
        Gigabytes of decoded images to keep in memory.

    Returns
    -------
    Images
        An image that can't be decoded keeps its place: ``X.load`` gives the reason.

    Raises
    ------
    DataError
        If there are no images, or it is unclear what they are; the message says where and what to do.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> folder = tempfile.mkdtemp()
    >>> for kind in ("crack", "good"):
    ...     os.mkdir(os.path.join(folder, kind))
    ...     Image.new("L", (32, 24)).save(os.path.join(folder, kind, "0.png"))
    >>> images = read_images(folder, normal_class="good")
    >>> images.ids.tolist(), images.y.tolist(), images.X.shape
    (['crack/0.png', 'good/0.png'], [1, 0], (2, 1, 24, 32))
    """
    name = os.fspath(path)
    asked = _Asked(
        label=label,
        normal=_texts(normal_class),
        path_column=path_column,
        options={"size": size, "channels": channels, "n_workers": n_workers, "cache_gb": cache_gb},
    )
    if os.path.isdir(name):
        return _read_folder(name, asked)
    if not os.path.exists(name):
        raise DataError(f"{name} does not exist.")
    return IMAGE_READERS[known_suffix(name, IMAGE_READERS)](name, asked)


@dataclass(frozen=True)
class _Asked:
    label: str | None
    normal: tuple[str, ...]
    path_column: str
    options: dict[str, Any]


def _texts(values: str | int | Sequence[str | int]) -> tuple[str, ...]:
    return (str(values),) if isinstance(values, str | int) else tuple(map(str, values))


def _blank(n: int) -> NDArray[np.object_]:
    return np.full(n, "", dtype=object)


def _array_of(texts: Sequence[str]) -> NDArray[np.object_]:
    array = np.empty(len(texts), dtype=object)
    array[:] = texts
    return array


def class_labels(kinds: NDArray[np.object_], normal: Sequence[str], where: str) -> NDArray[np.int8]:
    """0 for images of a normal class, 1 for those of another, -1 for those of none.

    Examples
    --------
    >>> class_labels(np.array(["good", "crack", ""], dtype=object), ["good"], "wood").tolist()
    [0, 1, -1]
    """
    classes = sorted(set(kinds) - {""})
    for wanted in normal:
        if wanted not in classes:
            known = f"Its classes are {', '.join(map(repr, classes))}" if classes else "It has no subfolders"
            raise DataError(f"{where} has no class {wanted!r}. {known}.")
    return _class_labels(kinds, normal)


def _class_labels(kinds: NDArray[np.object_], normal: Sequence[str]) -> NDArray[np.int8]:
    return np.select([kinds == "", np.isin(kinds.astype(str), normal)], [-1, 0], 1).astype(np.int8)


# Folders -------------------------------------------------------------------------------------------------------------


def _read_folder(name: str, asked: _Asked) -> Images:
    if asked.label is not None:
        raise DataError(
            f"{name} is a folder, which has no label column. Name the folder of normal images with --normal-class."
        )
    root = _mvtec_root(name)
    if root is not None:
        return _read_mvtec(name, root, asked)
    ids, others = _listed(name)
    if not ids:
        raise _no_image(name, others)
    kinds = _array_of([_kind(id) for id in ids])
    return Images(
        X=_files(name, ids, asked),
        y=class_labels(kinds, asked.normal, name) if asked.normal else None,
        ids=_array_of([_shown(id) for id in ids]),
        id_name="path",
        name=name,
        kinds=kinds,
        splits=_blank(len(ids)),
        n_ignored=others.total(),
    )


def _files(folder: str, ids: Sequence[str], asked: _Asked) -> ImageSet:
    return ImageSet.from_files([os.path.join(folder, id) for id in ids], names=[*map(_shown, ids)], **asked.options)


def _listed(folder: str) -> tuple[list[str], Counter[str]]:
    """Sorted relative paths of the images below a folder, and the number of other files by suffix; none hidden."""
    ids: list[str] = []
    others: Counter[str] = Counter()
    for id in files_below(folder):
        if id.lower().endswith(SUFFIXES):
            ids.append(id)
        else:
            others[PurePath(id).suffix.lower()] += 1
    return sorted(ids), others


def files_below(folder: str) -> Iterator[str]:
    """Paths of the files below a folder, relative to it, less hidden ones. Links to folders are followed."""
    return _walked(folder, "", frozenset())


def _walked(folder: str, prefix: str, above: frozenset[str]) -> Iterator[str]:
    """Files below a folder. Links to folders are followed, but not up again."""
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise DataError(f"{folder} can't be opened: {error.strerror or error}.") from None
    for name in names:
        path = os.path.join(folder, name)
        if name.startswith("."):
            continue
        if os.path.isdir(path):
            yield from _walked(path, f"{prefix}{name}/", above | {real})
        else:
            yield prefix + name


def _shown(id: str) -> str:
    """A path as text that can be written: bytes that are not UTF-8 are spelled out."""
    return os.fsencode(id).decode("utf-8", "backslashreplace")


def _kind(id: str) -> str:
    """The first folder of a relative path."""
    first, slash, _ = id.partition("/")
    return _shown(first) if slash else ""


def _no_image(name: str, others: Counter[str]) -> DataError:
    found = [f"{n} {suffix}" if suffix else f"{n} without a suffix" for suffix, n in others.most_common(10)]
    holds = f"the files there are {', '.join(found)}" if found else "there are no files in it"
    return DataError(f"{name} is a folder without an image: {holds}. Images end in {', '.join(SUFFIXES)}.")


# MVTec AD ------------------------------------------------------------------------------------------------------------

_SPLITS = ("train", "test")


def _mvtec_root(folder: str) -> str | None:
    """Root of the layout that a folder is, or is the train or test of."""
    parent, last = os.path.split(os.path.abspath(folder))
    for root in (folder, *([parent] if last in _SPLITS else [])):
        if os.path.isdir(os.path.join(root, "train", "good")) and os.path.isdir(os.path.join(root, "test")):
            return root
    return None


def _read_mvtec(name: str, root: str, asked: _Asked) -> Images:
    ids, others = _listed(name)
    inner = "" if root == name else f"{os.path.basename(os.path.abspath(name))}/"
    placed = {id: f"{inner}{id}" for id in ids}
    kept = [id for id in ids if placed[id].startswith(("train/", "test/"))]
    if not kept:
        raise _no_image(name, others)
    n_masks = sum(placed[id].startswith("ground_truth/") for id in ids)
    splits = [placed[id].partition("/")[0] for id in kept]
    kinds = _array_of([_kind(placed[id].partition("/")[2]) for id in kept])
    masks, stray = _masks(root, [placed[id] for id in kept])
    return Images(
        X=_files(name, kept, asked),
        # A test without good images has anomalies only; classes asked for by name have to be there.
        y=class_labels(kinds, asked.normal, name) if asked.normal else _class_labels(kinds, ["good"]),
        ids=_array_of([_shown(id) for id in kept]),
        id_name="path",
        name=name,
        kinds=kinds,
        splits=_array_of(splits),
        masks=masks,
        stray_masks=stray,
        n_ignored=others.total() + len(ids) - len(kept) - n_masks,
    )


def _masks(root: str, placed: Sequence[str]) -> tuple[tuple[str | None, ...] | None, tuple[str, ...]]:
    """Mask of each image, and masks of no image; of a part of the layout without its test, neither."""
    folder = os.path.join(root, "ground_truth")
    tested = {os.path.splitext(id)[0][5:]: place for place, id in enumerate(placed) if id.startswith("test/")}
    if not tested or not os.path.isdir(folder):
        return None, ()
    found = {re.sub(r"(_mask)?\.[^./]+$", "", id): os.path.join(folder, id) for id in _listed(folder)[0]}
    masks: list[str | None] = [None] * len(placed)
    for name in tested.keys() & found.keys():
        masks[tested[name]] = found[name]
    stray = tuple(path for name, path in found.items() if name not in tested)
    return (tuple(masks) if any(masks) else None), stray


# Files ---------------------------------------------------------------------------------------------------------------


def _read_image(name: str, asked: _Asked) -> Images:
    _check_unlabelled(name, asked)
    id = os.path.basename(name)
    return Images(
        X=_files(os.path.dirname(name), [id], asked),
        y=None,
        ids=_array_of([_shown(id)]),
        id_name="path",
        name=name,
        kinds=_blank(1),
        splits=_blank(1),
    )


def _check_unlabelled(name: str, asked: _Asked) -> None:
    if asked.normal or asked.label is not None:
        raise DataError(f"{name} has no labels, so that a label or a normal class means nothing. Leave it out.")


def _read_list(name: str, asked: _Asked) -> Images:
    column, label = asked.path_column, asked.label
    if asked.normal and label is None:
        raise DataError("A normal class was given without a label column. Name the column with --label.")
    table = READERS[known_suffix(name, READERS)](_content(name), name, Options(text_columns=(column,)))
    frame = frame_of(table, name, (column,))
    for wanted in (column, *([] if label is None else [label])):
        if wanted not in frame:
            raise no_such_column(name, wanted, frame.columns)
    ids = frame[column].astype(object).where(frame[column].notna(), "").tolist()
    y, kinds = (None, _blank(len(ids))) if label is None else _labelled(frame[label], asked.normal, name)
    return Images(
        X=_files(os.path.dirname(name), ids, asked),
        y=y,
        ids=_array_of(ids),
        id_name="path",
        name=name,
        kinds=kinds,
        splits=_blank(len(ids)),
    )


def _content(name: str) -> bytes:
    try:
        with open(name, "rb") as file:
            content = file.read()
    except OSError as error:
        raise DataError(f"{name} can't be opened: {error.strerror or error}.") from None
    if not content:
        raise DataError(f"{name} is empty.")
    return content


def _labelled(
    values: "pd.Series[Any]", normal: Sequence[str], where: str
) -> tuple[NDArray[np.int8], NDArray[np.object_]]:
    """Labels, and the kinds that they name: none, where they only say 0 or 1."""
    y = labels(values, normal, where)
    return y, _kinds(values) if normal else _blank(len(y))


def _kinds(values: "pd.Series[Any]") -> NDArray[np.object_]:
    return _array_of(
        ["" if pd.isna(v) else f"{v:g}" if isinstance(v, float) else str(v) for v in values.astype(object)]
    )


def _array_reader(read: Callable[[str, str | None], Arrays]) -> Callable[[str, _Asked], Images]:
    def reader(name: str, asked: _Asked) -> Images:
        found = read(name, asked.label)
        X = ImageSet.from_array(found.images, where=name, **asked.options)
        y, kinds = _array_labels(found, asked, name, len(X))
        return Images(X, y, X.names, "row", name, kinds, _blank(len(X)))

    return reader


def _array_labels(
    found: Arrays, asked: _Asked, name: str, n: int
) -> tuple[NDArray[np.int8] | None, NDArray[np.object_]]:
    if found.labels is None:
        _check_unlabelled(name, asked)
        return None, _blank(n)
    if found.labels.shape not in ((n,), (n, 1)):
        where = f"{found.labels_file}: {found.labels_key!r}"
        raise DataError(f"{where} has shape {found.labels.shape}, expected one label for each of {n} images.")
    values = pd.Series(found.labels.reshape(-1), name=found.labels_key)
    # Labels that were found and not asked for may be classes; they are no labels until one is called normal.
    if asked.label is None and not asked.normal and not values.isin([0, 1]).all():
        return None, _kinds(values)
    return _labelled(values, asked.normal, found.labels_file)


IMAGE_READERS: dict[str, Callable[[str, _Asked], Images]] = {
    **dict.fromkeys(SUFFIXES, _read_image),
    ".npy": _array_reader(read_npy),
    ".npz": _array_reader(read_npz),
    "-ubyte": _array_reader(read_idx),
    "-ubyte.gz": _array_reader(read_idx),
    **dict.fromkeys((".csv", ".csv.gz", ".tsv", ".parquet"), _read_list),
}
