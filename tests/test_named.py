import hashlib
import pickle
import re
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import scipy.io
import torchvision
from torchvision import datasets

from vae_anomaly.data.named import NAMED, read_named
from vae_anomaly.errors import DataError, UnknownNameError

N_TRAIN, N_TEST = 12, 8


@pytest.fixture(autouse=True)
def _no_network(tmp_path, monkeypatch):
    """Nothing is fetched, and small files of our own pass for the real ones."""

    def refuse(*args, **kwargs):
        raise URLError("no network in tests")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("urllib.request.urlopen", refuse)


def pixels_and_targets(shape, n, seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, *shape), dtype=np.uint8), np.arange(n) % 10


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def make_idx(folder, parts, monkeypatch):
    Path(folder, "raw").mkdir(parents=True)
    for stem, (pixels, targets) in zip(("train", "t10k"), parts, strict=True):
        Path(folder, "raw", f"{stem}-images-idx3-ubyte").write_bytes(idx(pixels))
        Path(folder, "raw", f"{stem}-labels-idx1-ubyte").write_bytes(idx(targets.astype(np.uint8)))


def make_cifar(parts, monkeypatch):
    folder = Path("cifar-10-batches-py")
    folder.mkdir()

    def batch(name, pixels, targets):
        rows = np.moveaxis(pixels, -1, 1).reshape(len(pixels), -1)
        folder.joinpath(name).write_bytes(pickle.dumps({"data": rows, "labels": targets.tolist()}))
        return [name, hashlib.md5(folder.joinpath(name).read_bytes()).hexdigest()]

    (train, train_targets), test = parts
    cuts = np.array_split(np.arange(len(train)), 5)
    batches = [batch(f"data_batch_{i + 1}", train[cut], train_targets[cut]) for i, cut in enumerate(cuts)]
    monkeypatch.setattr(datasets.CIFAR10, "train_list", batches)
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [batch("test_batch", *test)])
    meta = pickle.dumps({"label_names": list(NAMED["cifar10"].classes)})
    folder.joinpath("batches.meta").write_bytes(meta)
    facts = {**datasets.CIFAR10.meta, "md5": hashlib.md5(meta).hexdigest()}
    monkeypatch.setattr(datasets.CIFAR10, "meta", facts)


def make_svhn(parts, monkeypatch):
    facts = dict(datasets.SVHN.split_list)
    for split, (pixels, targets) in zip(("train", "test"), parts, strict=True):
        file = f"{split}_32x32.mat"
        # SVHN calls the digit zero 10.
        y = np.where(targets == 0, 10, targets)[:, None].astype(np.uint8)
        scipy.io.savemat(file, {"X": np.moveaxis(pixels, 0, -1), "y": y})
        facts[split] = [facts[split][0], file, hashlib.md5(Path(file).read_bytes()).hexdigest()]
    monkeypatch.setattr(datasets.SVHN, "split_list", facts)


MAKERS = {
    "mnist": lambda *args: make_idx("MNIST", *args),
    "fashion-mnist": lambda *args: make_idx("FashionMNIST", *args),
    "kmnist": lambda *args: make_idx("KMNIST", *args),
    "cifar10": make_cifar,
    "svhn": make_svhn,
}


@pytest.fixture(params=NAMED)
def made(request, monkeypatch):
    """Name, pixels and classes of a small copy of a data set."""
    name = request.param
    shape = (32, 32, 3) if name in ("cifar10", "svhn") else (28, 28)
    parts = [pixels_and_targets(shape, n, seed) for seed, n in enumerate((N_TRAIN, N_TEST))]
    MAKERS[name](parts, monkeypatch)
    return name, parts


@pytest.mark.parametrize("download", [True, False])
def test_every_data_set(made, download):
    name, parts = made
    for split, (pixels, targets) in zip(("train", "test"), parts, strict=True):
        data = read_named(name, root=".", split=split, download=download)
        assert data.X.source.array.dtype == np.uint8
        expected = np.moveaxis(pixels.reshape(*pixels.shape[:3], -1), -1, 1) / np.float32(255)
        np.testing.assert_array_equal(data.X.load()[0], expected)
        assert data.kinds.tolist() == [NAMED[name].classes[t] for t in targets]
        assert data.splits.tolist() == [split] * len(targets)
        assert data.y is None
        assert data.ids.tolist() == list(range(1, len(targets) + 1))
        assert data.locate(2) == f"{name}, image 3"


def test_both_splits(made):
    name, _ = made
    data = read_named(name, root=Path("."), normal_class=0)
    assert data.splits.tolist() == ["train"] * N_TRAIN + ["test"] * N_TEST
    for split in ("train", "test"):
        part = data.take(data.splits == split)
        np.testing.assert_array_equal(part.X.load()[0], read_named(name, root=".", split=split).X.load()[0])


def test_classes_by_name_and_by_number(made):
    name, parts = made
    number = 3
    expected = (np.concatenate([targets for _, targets in parts]) != number).astype(int).tolist()
    known = NAMED[name].classes[number]
    for normal_class in (number, str(number), known, known.upper(), [number], [known, number]):
        assert read_named(name, root=".", normal_class=normal_class).y.tolist() == expected
    for wrong in ("dragon", 10, -1):
        with pytest.raises(DataError, match=re.escape(f"{name} has no class {wrong!r}. Its classes are 0 '")):
            read_named(name, root=".", normal_class=wrong)


def test_size_and_channels(made):
    name, _ = made
    data = read_named(name, root=".", split="test", size=16, channels=1)
    assert data.X.shape == (N_TEST, 1, 16, 16)
    assert data.X.load()[1].tolist() == [""] * N_TEST


@pytest.mark.parametrize("name", NAMED)
def test_classes_and_files_are_those_of_torchvision(name):
    kind = getattr(torchvision.datasets, NAMED[name].dataset)
    assert len(set(NAMED[name].classes)) == 10
    if name == "fashion-mnist":
        assert list(NAMED[name].classes) == kind.classes
    if name == "kmnist":
        assert list(NAMED[name].classes) == kind.classes
    if name == "cifar10":
        files = [file for file, _ in (*kind.train_list, *kind.test_list)] + [kind.meta["filename"]]
        assert NAMED[name].files["train"] == tuple(f"{kind.base_folder}/{file}" for file in files)
    if name.endswith("mnist"):
        stems = {file.removesuffix(".gz") for file, _ in kind.resources}
        assert {Path(file).name for file in NAMED[name].files["test"]} == stems
    if name == "svhn":
        assert {split: files[0] for split, files in NAMED[name].files.items()} == {
            split: kind.split_list[split][1] for split in ("train", "test")
        }


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("split", ["train", "test"])
def test_missing_files_without_a_network(name, split):
    lacking = f"{name} is not in data: it lacks {', '.join(NAMED[name].files[split])}."
    way_out = f"Fetch them from {NAMED[name].source} and put them there"
    with pytest.raises(DataError, match=re.escape(lacking)) as caught:
        read_named(name, root="data", split=split)
    assert "They could not be fetched: <urlopen error no network in tests>" in str(caught.value)
    assert way_out in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=re.escape(f"{lacking} They were not to be fetched. {way_out}")):
        read_named(name, root="data", split=split, download=False)


def test_damaged_files(made):
    name, _ = made
    Path(NAMED[name].files["train"][0]).write_bytes(b"junk")
    with pytest.raises(DataError, match=re.escape(f"{name} in . can't be read: ")):
        read_named(name, root=".", split="train", download=False)


def test_unknown_names():
    with pytest.raises(UnknownNameError, match=r"Unknown data set 'minst'\. Choose from 'cifar10', 'fashion-mnist'"):
        read_named("minst", root=".")
    with pytest.raises(UnknownNameError, match=r"Unknown split 'val'\. Choose from 'test', 'train'\."):
        read_named("mnist", root=".", split="val")
