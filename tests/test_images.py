import gzip
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pictures import pattern, save

from vae_anomaly.data import image_set, images
from vae_anomaly.data.decoding import SUFFIXES
from vae_anomaly.data.images import IMAGE_READERS, class_labels, read_images
from vae_anomaly.errors import DataError


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def says(sentence):
    return pytest.raises(DataError, match=re.escape(sentence))


@pytest.fixture
def mvtec():
    for seed, name in enumerate(
        ["train/good/000", "train/good/001", "test/good/000", "test/crack/000", "test/hole/000"]
    ):
        save(f"wood/{name}.png", pattern(seed=seed))
    for name in ("crack/000_mask", "hole/000"):
        save(f"wood/ground_truth/{name}.png", pattern(channels=1))
    Path("wood/license.txt").touch()
    save("wood/preview.png")
    return "wood"


# Folders -------------------------------------------------------------------------------------------------------------


def test_a_folder_is_read_with_its_subfolders_by_name():
    names = ["b/2.png", "a.png", "b/10.JPG", "b/c/1.bmp", "Z.tiff"]
    for seed, name in enumerate(names):
        save(f"in/{name}", pattern(seed=seed))
    for other in ("in/notes.txt", "in/b/table.csv", "in/b/noise", "in/.hidden.png", "in/.cache/x.png"):
        Path(other).parent.mkdir(exist_ok=True)
        Path(other).touch()
    data = read_images("in")
    assert data.ids.tolist() == ["Z.tiff", "a.png", "b/10.JPG", "b/2.png", "b/c/1.bmp"]
    assert data.kinds.tolist() == ["", "", "b", "b", "b"]
    assert data.splits.tolist() == [""] * 5
    assert data.id_name == "path"
    assert data.y is None
    assert data.masks is None
    assert data.n_ignored == 3
    assert data.name == "in"
    assert len(data) == len(data.X) == 5
    assert data.X.names.tolist() == data.ids.tolist()
    assert [data.locate(i) for i in (0, 4)] == [os.path.join("in", "Z.tiff"), os.path.join("in", "b/c/1.bmp")]
    np.testing.assert_array_equal(data.X.load([3])[0][0], pattern(seed=0).transpose(2, 0, 1) / np.float32(255))


def test_the_order_does_not_depend_on_the_file_system(monkeypatch):
    for name in ("a/2", "a/1", "b/0", "a-b/3", "a"):
        save(f"in/{name}.png")
    expected = read_images("in").ids.tolist()
    listdir = os.listdir
    for order in (sorted, lambda names: sorted(names, reverse=True)):
        monkeypatch.setattr(os, "listdir", lambda folder, order=order: order(listdir(folder)))
        assert read_images("in").ids.tolist() == expected


def test_nothing_is_decoded_while_reading(monkeypatch):
    for i in range(5):
        save(f"in/{i}.png")
    monkeypatch.setattr(image_set, "decoded", lambda path: pytest.fail(f"{path} was decoded"))
    data = read_images("in")
    assert data.take([1, 3]).normal().X.shape == (2, 3, 12, 20)


def test_class_folders():
    for name in ("good/0", "crack/0", "good/1", "loose"):
        save(f"in/{name}.png")
    data = read_images("in", normal_class="good")
    assert data.ids.tolist() == ["crack/0.png", "good/0.png", "good/1.png", "loose.png"]
    assert data.kinds.tolist() == ["crack", "good", "good", ""]
    assert data.y.dtype == np.int8
    assert data.y.tolist() == [1, 0, 0, -1]
    assert read_images("in", normal_class=["crack", "good"]).y.tolist() == [0, 0, 0, -1]
    with says("in has no class 'god'. Its classes are 'crack', 'good'."):
        read_images("in", normal_class="god")
    with says("in/good has no class 'good'. It has no subfolders."):
        read_images("in/good", normal_class="good")


def test_classes_may_be_numbers():
    save("in/3/a.png")
    save("in/7/a.png")
    assert read_images("in", normal_class=3).y.tolist() == [0, 1]
    assert class_labels(np.array(["3", "7"], object), ["7"], "in").tolist() == [1, 0]


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (
            ["a.txt", "b.TXT", "c/d.csv", "c/README", ".x.png"],
            "the files there are 2 .txt, 1 .csv, 1 without a",
        ),
        ([], "there are no files in it."),
        ([".x.png"], "there are no files in it. Images end in .png, .jpg, .jpeg, .bmp, .tif, .tiff, .webp."),
    ],
)
def test_a_folder_without_an_image(files, sentence):
    Path("in/c").mkdir(parents=True)
    for file in files:
        Path("in", file).touch()
    with says(f"in is a folder without an image: {sentence}"):
        read_images("in")


def test_links_to_folders_are_followed_but_not_in_circles():
    save("elsewhere/0.png")
    save("in/a/0.png")
    os.symlink(os.path.abspath("elsewhere"), "in/linked")
    os.symlink(os.path.abspath("elsewhere"), "in/again")
    os.symlink(os.path.abspath("in"), "in/a/up")
    assert read_images("in").ids.tolist() == ["a/0.png", "again/0.png", "linked/0.png"]


HOSTILE = [
    "with space.png",
    "ünïcödé 测试 🙂.png",
    "new\nline.png",
    "-rf.png",
    "a;b,c'd\"e.png",
    "x" * 200 + ".png",
    "dir with space/a b.png",
    "%s{0}.png",
    "a.png.png",
    "..png",
]


def test_hostile_names():
    names = [name for name in HOSTILE if not name.startswith(".")]
    for seed, name in enumerate(names):
        save(f"in/{name}", pattern(seed=seed))
    data = read_images("in")
    assert sorted(data.ids.tolist()) == sorted(names)
    assert (data.X.load()[1] == "").all()
    assert data.take(data.ids == "new\nline.png").ids.tolist() == ["new\nline.png"]


def test_names_that_are_not_utf8_are_spelled_out():
    save("a.png")
    Path("in").mkdir()
    try:
        os.rename(b"a.png", b"in/\xff.png")
    except OSError:
        pytest.skip("this file system refuses such names")
    data = read_images("in")
    assert data.ids.tolist() == ["\\xff.png"]
    assert data.ids[0].encode()
    assert data.X.load()[1].tolist() == [""]


def test_broken_files_stay_with_their_reason():
    for name in "abcd":
        save(f"in/{name}.png")
    Path("in/b.png").write_bytes(Path("in/b.png").read_bytes()[:150])
    Path("in/c.png").write_bytes(b"")
    data = read_images("in")
    assert len(data) == 4
    x, reasons = data.X.load()
    assert reasons.tolist() == ["", "the image is damaged or cut short", "the file is empty", ""]
    assert np.isnan(x).all(axis=(1, 2, 3)).tolist() == [False, True, True, False]


# MVTec AD ------------------------------------------------------------------------------------------------------------


def test_the_layout_of_mvtec(mvtec):
    data = read_images(mvtec)
    assert data.ids.tolist() == [
        "test/crack/000.png",
        "test/good/000.png",
        "test/hole/000.png",
        "train/good/000.png",
        "train/good/001.png",
    ]
    assert data.splits.tolist() == ["test"] * 3 + ["train"] * 2
    assert data.kinds.tolist() == ["crack", "good", "hole", "good", "good"]
    assert data.y.tolist() == [1, 0, 1, 0, 0]
    masks = [os.path.join("wood", "ground_truth", name) for name in ("crack/000_mask.png", "hole/000.png")]
    assert data.masks == (masks[0], None, masks[1], None, None)
    assert all(Path(mask).is_file() for mask in masks)
    assert data.n_ignored == 2
    assert data.take(data.splits == "train").normal().ids.tolist() == ["train/good/000.png", "train/good/001.png"]
    assert data.take([2, 1]).masks == (masks[1], None)


@pytest.mark.parametrize("where", ["outside", "inside"])
def test_a_part_of_the_layout_of_mvtec(mvtec, where, monkeypatch):
    whole = read_images(mvtec)
    x, _ = whole.X.load()
    for split in ("train", "test"):
        if where == "inside":
            monkeypatch.chdir(f"{mvtec}/{split}")
        data = read_images("." if where == "inside" else f"{mvtec}/{split}/")
        part = whole.take(whole.splits == split)
        assert [f"{split}/{id}" for id in data.ids] == part.ids.tolist()
        assert data.splits.tolist() == part.splits.tolist()
        assert data.kinds.tolist() == part.kinds.tolist()
        assert data.y.tolist() == part.y.tolist()
        assert (data.masks is None) == (split == "train")
        if data.masks is not None:
            assert [m and Path(m).name for m in data.masks] == [m and Path(m).name for m in part.masks]
            assert all(Path(m).is_file() for m in data.masks if m)
        np.testing.assert_array_equal(data.X.load()[0], x[whole.splits == split])
        if where == "inside":
            monkeypatch.chdir("../..")


def test_other_normal_classes_of_mvtec(mvtec):
    assert read_images(mvtec, normal_class=["good", "hole"]).y.tolist() == [1, 0, 0, 0, 0]
    with says("wood has no class 'fine'. Its classes are 'crack', 'good', 'hole'."):
        read_images(mvtec, normal_class="fine")


def test_a_test_without_good_images(mvtec):
    Path("wood/test/good/000.png").unlink()
    assert read_images("wood/test").y.tolist() == [1, 1]


def test_mvtec_without_masks(mvtec):
    for path in Path("wood/ground_truth").rglob("*.png"):
        path.unlink()
    assert read_images(mvtec).masks is None


def test_folders_named_train_are_not_always_mvtec():
    save("in/train/cat/0.png")
    save("in/test/cat/0.png")
    data = read_images("in")
    assert data.y is None
    assert data.kinds.tolist() == ["test", "train"]
    assert read_images("in/train").kinds.tolist() == ["cat"]


# Files ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_one_image(suffix):
    save(f"in/A b{suffix.upper()}")
    data = read_images(Path(f"in/A b{suffix.upper()}"))
    assert data.ids.tolist() == [f"A b{suffix.upper()}"]
    assert data.X.shape == (1, 3, 12, 20)
    assert data.locate(0) == os.path.join("in", f"A b{suffix.upper()}")
    assert len(data.normal()) == 1


def test_size_and_channels():
    save("a.png", pattern(300, 600))
    assert read_images("a.png").X.shape == (1, 3, 128, 256)
    assert read_images("a.png", size=64, channels=1).X.shape == (1, 1, 64, 64)
    assert read_images("a.png", size=(32, 48)).X.shape == (1, 3, 32, 48)


def test_paths_that_lead_nowhere():
    with says("gone.png does not exist."):
        read_images("gone.png")
    Path("a.gif").touch()
    with says(f"a.gif: the suffix '.gif' is unknown. Known suffixes are {', '.join(IMAGE_READERS)}."):
        read_images("a.gif")


@pytest.mark.parametrize("options", [{"normal_class": "good"}, {"label": "y"}])
def test_labels_where_there_are_none(options):
    save("a.png")
    np.save("a.npy", np.zeros((2, 8, 8), np.uint8))
    for path in ("a.png", "a.npy"):
        with says(f"{path} has no labels, so that a label or a normal class means nothing. Leave it out."):
            read_images(path, **options)
    with says(". is a folder, which has no label column."):
        read_images(".", label="y")


# Arrays --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("channels", [None, 1, 3])
def test_npy(dtype, channels):
    white = 1 if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max
    array = (np.random.default_rng(0).random((4, 9, 8, *([channels] if channels else []))) * white).astype(dtype)
    np.save("a.npy", array)
    data = read_images("a.npy")
    assert data.X.shape == (4, channels or 1, 9, 8)
    assert data.id_name == "row"
    assert data.ids.tolist() == [1, 2, 3, 4]
    assert data.take([3]).locate(0) == "a.npy, image 4"
    expected = np.moveaxis(array.reshape(4, 9, 8, -1), -1, 1).astype(np.float32) / np.float32(white)
    np.testing.assert_array_equal(data.X.load()[0], expected)


def test_npy_is_mapped_and_not_read():
    np.save("a.npy", np.zeros((4, 9, 8), np.uint8))
    assert isinstance(read_images("a.npy").X.source.array.base, np.memmap)


@pytest.mark.parametrize("key", ["X", "images", "anything"])
@pytest.mark.parametrize("label", ["y", "labels"])
def test_npz(key, label):
    np.savez("a.npz", **{key: np.zeros((3, 9, 8), np.uint8), label: np.array([0, 1, 0])})
    data = read_images("a.npz")
    assert data.X.shape == (3, 1, 9, 8)
    assert data.y.tolist() == [0, 1, 0]
    assert data.kinds.tolist() == [""] * 3
    np.savez("a.npz", **{key: np.zeros((3, 9, 8), np.uint8), label: np.array([2, 1, 0])})
    data = read_images("a.npz")
    assert data.y is None
    assert data.kinds.tolist() == ["2", "1", "0"]
    data = read_images("a.npz", normal_class=[1, 2])
    assert data.y.tolist() == [0, 0, 1]
    with says(f"a.npz, column '{label}' holds 0, 1, 2; say which of them is normal"):
        read_images("a.npz", label=label)
    with says(f"a.npz, column '{label}': no label is '9', it holds 0, 1, 2."):
        read_images("a.npz", normal_class=9)


def test_npz_with_labels_of_any_name():
    np.savez("a.npz", X=np.zeros((3, 9, 8), np.uint8), y=np.zeros(3), state=np.array(["ok", "leak", "ok"]))
    data = read_images("a.npz", label="state", normal_class="ok")
    assert data.y.tolist() == [0, 1, 0]
    assert data.kinds.tolist() == ["ok", "leak", "ok"]
    with says("a.npz has no array 'stat'. It holds 'X', 'y', 'state'."):
        read_images("a.npz", label="stat")


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"a": np.zeros((2, 8, 8)), "b": np.zeros((2, 8, 8))}, "a.npz holds 'a' of shape (2, 8, 8), 'b' of shape"),
        ({}, "a.npz holds no arrays. Name the array of images 'X'."),
        ({"X": np.zeros((2, 8))}, "a.npz has shape (2, 8), expected (n, height, width)"),
        ({"X": np.full((2, 8, 8), 9.0)}, "a.npz holds the value 9, and floats have to lie in [0, 1]."),
        ({"X": np.zeros((2, 8, 8)), "y": np.zeros(3)}, "a.npz: 'y' has shape (3,), expected one label for each of 2"),
        ({"X": np.array([[[None]]])}, "a.npz holds Python objects, which are never loaded because they can run code."),
    ],
)
def test_unusable_npz(arrays, sentence):
    np.savez("a.npz", **arrays)
    with says(sentence):
        read_images("a.npz")


@pytest.mark.parametrize("content", [b"junk", b"\x80\x04N.", b"PK\x03\x04junk", b"\x93NUMPY\x01\x00"])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_damaged_numpy(content, suffix):
    Path(f"a{suffix}").write_bytes(content)
    with says(f"a{suffix} is damaged or not a NumPy file. Save it again with numpy.save or numpy.savez."):
        read_images(f"a{suffix}")
    Path(f"a{suffix}").write_bytes(b"")
    with says(f"a{suffix} is empty."):
        read_images(f"a{suffix}")


def test_numpy_under_the_other_suffix():
    np.savez("a.npz", X=np.zeros((2, 8, 8), np.uint8))
    Path("a.npz").rename("b.npy")
    with says("b.npy is damaged or not a NumPy file."):
        read_images("b.npy")


def idx(array):
    sides = b"".join(side.to_bytes(4, "big") for side in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sides + array.astype(np.uint8).tobytes()


@pytest.mark.parametrize("images_packed", [False, True])
@pytest.mark.parametrize("labels_packed", [False, True])
def test_idx(images_packed, labels_packed):
    array = np.random.default_rng(0).integers(0, 256, (5, 9, 8), dtype=np.uint8)
    for stem, content, packed in (
        ("train-images-idx3-ubyte", idx(array), images_packed),
        ("train-labels-idx1-ubyte", idx(np.array([3, 1, 3, 0, 7])), labels_packed),
    ):
        Path(stem + (".gz" if packed else "")).write_bytes(gzip.compress(content) if packed else content)
    name = "train-images-idx3-ubyte" + (".gz" if images_packed else "")
    data = read_images(name)
    np.testing.assert_array_equal(data.X.load()[0][:, 0], array / np.float32(255))
    assert data.kinds.tolist() == ["3", "1", "3", "0", "7"]
    assert data.y is None
    assert read_images(name, normal_class=[3, "7"]).y.tolist() == [0, 1, 0, 1, 0]


def test_idx_under_other_names():
    array = np.zeros((2, 9, 8), np.uint8)
    Path("t10k-images.idx3-ubyte").write_bytes(idx(array))
    Path("t10k-labels.idx1-ubyte").write_bytes(idx(np.array([0, 5])))
    assert read_images("t10k-images.idx3-ubyte").kinds.tolist() == ["0", "5"]
    Path("pictures-ubyte").write_bytes(idx(array))
    assert read_images("pictures-ubyte").y is None


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is damaged or not an IDX file."),
        (b"junkjunk", "is damaged or not an IDX file."),
        (idx(np.zeros((2, 9, 8)))[:-1], "has 143 values, and its header says 144. Make or copy it again."),
        (b"\0\0\x08\x03" + b"\xff" * 12, "has 0 values, and its header says 79228162458924105385300197375."),
        (b"\0\0\x08\x03\xff\xff", "is damaged or not an IDX file."),
        (b"\0\0\x08\0", "is damaged or not an IDX file."),
        (b"\0\0\x0d\x03" + b"\0" * 12, "holds values of type 0x0d, expected bytes (0x08)."),
        (idx(np.zeros(4)), "holds labels. Read the file with the images; the labels beside it are found."),
    ],
)
def test_unusable_idx(content, sentence):
    Path("a-images-idx3-ubyte").write_bytes(content)
    with says(f"a-images-idx3-ubyte {sentence}"):
        read_images("a-images-idx3-ubyte")


@pytest.mark.parametrize("content", [b"junk", gzip.compress(idx(np.zeros((9, 9, 9))), mtime=0)[:-9]])
def test_damaged_gzip(content):
    Path("a-images-idx3-ubyte.gz").write_bytes(content)
    with says("a-images-idx3-ubyte.gz is damaged, cut short or not compressed with gzip."):
        read_images("a-images-idx3-ubyte.gz")


def test_idx_with_labels_of_another_number():
    Path("a-images-idx3-ubyte").write_bytes(idx(np.zeros((2, 9, 8))))
    Path("a-labels-idx1-ubyte").write_bytes(idx(np.zeros(3)))
    with says("a-labels-idx1-ubyte: 'labels' has shape (3,), expected one label for each of 2 images."):
        read_images("a-images-idx3-ubyte")


# Lists of paths ------------------------------------------------------------------------------------------------------


@pytest.fixture
def listed():
    for seed, name in enumerate(["a.png", "sub/b.png", "c.png"]):
        save(f"in/{name}", pattern(seed=seed))
    return pd.DataFrame(
        {
            "path": ["sub/b.png", os.path.abspath("in/c.png"), "../in/a.png", "gone.png", None],
            "state": ["crack", "ok", "ok", "ok", None],
            "bad": [1, 0, 0, 0, 1],
        }
    )


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_list_of_paths(listed, suffix):
    listed.to_csv("in/list.csv", index=False)
    listed.to_parquet("in/list.parquet")
    data = read_images(f"in/list{suffix}", label="state", normal_class="ok")
    assert data.ids.tolist() == [*listed["path"][:4], ""]
    assert data.y.tolist() == [1, 0, 0, 0, -1]
    assert data.kinds.tolist() == ["crack", "ok", "ok", "ok", ""]
    x, reasons = data.X.load()
    assert reasons.tolist() == ["", "", "", "the file does not exist", "not a file"]
    expected = [pattern(seed=seed).transpose(2, 0, 1) / np.float32(255) for seed in (1, 2, 0)]
    np.testing.assert_array_equal(x[:3], expected)
    data = read_images(f"in/list{suffix}", label="bad")
    assert data.y.tolist() == [1, 0, 0, 0, 1]
    assert data.kinds.tolist() == [""] * 5
    assert read_images(f"in/list{suffix}").y is None


def test_a_list_beside_the_images(listed):
    pd.DataFrame({"file": ["in/a.png"]}).to_csv("list.csv", index=False)
    data = read_images("list.csv", path_column="file")
    assert data.X.load()[1].tolist() == [""]
    with says("list.csv has no column 'path'. Its columns are 'file'."):
        read_images("list.csv")
    with says("list.csv has no column 'state'. Its columns are 'file'."):
        read_images("list.csv", path_column="file", label="state")
    with says("A normal class was given without a label column. Name the column with --label."):
        read_images("list.csv", path_column="file", normal_class="ok")


def test_paths_that_look_like_numbers_stay_text():
    save("007.png").rename("007")
    Path("list.csv").write_text("path,y\n007,0\n")
    data = read_images("list.csv", label="y")
    assert data.ids.tolist() == ["007"]
    assert data.X.load()[1].tolist() == [""]


def test_unusable_lists(listed):
    listed.to_csv("list.csv", index=False)
    with says("list.csv, column 'state' holds 'crack', 'ok'; say which of them is normal"):
        read_images("list.csv", label="state", size=8, channels=1)
    Path("list.csv").write_text("path\n")
    with says("list.csv has a header and no rows."):
        read_images("list.csv")
    Path("list.csv").write_text("")
    with says("list.csv is empty."):
        read_images("list.csv")
    Path("list.csv").write_text("path\ngone.png\n")
    with says("None of 1 images can be decoded; the first is gone.png: the file does not exist."):
        read_images("list.csv")


# Images --------------------------------------------------------------------------------------------------------------


def test_take_and_normal(mvtec):
    data = read_images(mvtec)
    for chosen in ([4, 0], [], data.y == 1, [False] * 5):
        taken = data.take(chosen)
        index = np.arange(5)[np.asarray(chosen, dtype=None if len(chosen) else int)]
        assert len(taken) == len(index)
        for name in ("ids", "kinds", "splits", "y"):
            assert getattr(taken, name).tolist() == getattr(data, name)[index].tolist()
        assert taken.masks == tuple(data.masks[i] for i in index)
        assert [taken.locate(i) for i in range(len(taken))] == [data.locate(i) for i in index]
        assert taken.X.names.tolist() == taken.ids.tolist()
        assert (taken.name, taken.id_name, taken.n_ignored) == (data.name, data.id_name, data.n_ignored)
    assert data.normal().y.tolist() == [0, 0, 0]
    assert data.normal().normal().ids.tolist() == data.normal().ids.tolist()
    assert data.take([2, 0]).fingerprint() != data.take([0, 2]).fingerprint()
    assert data.take(range(5)).fingerprint() == data.fingerprint()


def test_unlabelled_images_are_not_normal():
    save("in/good/0.png")
    save("in/loose.png")
    assert read_images("in", normal_class="good").normal().ids.tolist() == ["good/0.png"]


def test_a_folder_and_an_array_of_its_images_are_equal():
    stack = np.stack([pattern(seed=i) for i in range(3)])
    for i, pixels in enumerate(stack):
        save(f"in/{i}.png", pixels)
    np.save("in.npy", stack)
    for size in (None, 16):
        np.testing.assert_array_equal(
            read_images("in", size=size).X.load()[0], read_images("in.npy", size=size).X.load()[0]
        )


def test_reading_same_sized_images_needs_no_torch():
    save("in/0.png")
    code = "import sys; from vae_anomaly.data.images import read_images; read_images('in').X.load(); "
    code += "sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_every_reader_is_tried_here():
    assert images.IMAGE_READERS.keys() == {
        *SUFFIXES,
        ".npy",
        ".npz",
        "-ubyte",
        "-ubyte.gz",
        ".csv",
        ".csv.gz",
        ".tsv",
        ".parquet",
    }
