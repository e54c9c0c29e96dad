"""Images that are not as they should be, on the command line: one clear sentence each, and nothing half-written."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tables import mixed, read_predictions, run
from test_pixels import SMALL, discs

from vae_anomaly.detector import VAEDetector

OPTIONS = ("--net", "mlp", "--latent-dim", 2, "--max-steps", 20, "--estimators", 2, "--hidden", "8", "--fpr", 0.2)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "disc.safetensors"
    VAEDetector(net="mlp", **SMALL).fit(discs(60)).save(path)
    return path


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def save(folder, n=20, seed=0, size=(12, 12), mode="L", suffix=".png"):
    Path(folder).mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(discs(n, seed)):
        pixels = Image.fromarray((image[0] * 255).astype(np.uint8)).resize(size)
        pixels.convert(mode).save(f"{folder}/{seed}_{number:03}{suffix}")


def bomb(path, side=20_000):
    """A PNG file of a few hundred bytes that says that it has 400 million pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    content = zlib.compress(b"\0" * 1000)
    Path(path).write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")
    )


def test_images_of_several_sizes_are_brought_to_one_and_that_is_said():
    save("parts", size=(12, 12))
    save("parts", n=20, seed=1, size=(24, 18))
    result = run("fit", "parts", "-o", "m.safetensors", *OPTIONS, "--size", 12)
    assert "Images of 2 sizes, such as 12 x 12 and 24 x 18, are brought to 12 x 12 pixels" in result.stderr
    assert "12" in run("inspect", "m.safetensors").stdout


def test_images_of_one_size_are_left_alone_and_nothing_is_said():
    save("parts")
    result = run("fit", "parts", "-o", "m.safetensors", *OPTIONS)
    assert "are brought to" not in result.stderr
    result = run("fit", "parts", "-o", "m.safetensors", *OPTIONS, "--size", 8, "--overwrite")
    assert "Images of 12 x 12 pixels are brought to 8 x 8 pixels" in result.stderr


@pytest.mark.parametrize("verb", ["fit", "score", "report", "calibrate"])
def test_a_folder_in_which_nothing_can_be_read(verb, model):
    Path("parts/deep").mkdir(parents=True)
    model = [] if verb == "fit" else [model]
    result = run(verb, *model, "parts", "-o", "out.csv" if verb == "score" else "out", exit_code=3)
    assert "parts is a folder without an image or a table, with no files at all." in result.stderr
    Path("parts/deep/notes.txt").touch()
    result = run(verb, *model, "parts", "-o", "out.csv" if verb == "score" else "out", exit_code=3)
    assert "with 1 other files, such as deep/notes.txt. Images end in .png" in result.stderr
    assert not list(Path().glob("out*"))


@pytest.mark.parametrize("verb", ["fit", "calibrate"])
@pytest.mark.parametrize("classes", [("good", "crack"), ("ok_parts", "Defects")])
def test_labels_where_normal_images_were_expected(verb, classes, model):
    for seed, name in enumerate(classes):
        save(f"parts/{name}", seed=seed)
    model = [] if verb == "fit" else [model]
    options = OPTIONS if verb == "fit" else ("--fpr", 0.2)
    result = run(verb, *model, "parts", "-o", "x.safetensors", *options, exit_code=3)
    assert "parts has classes (" in result.stderr
    assert f"{classes[1]!r}" in result.stderr
    assert "Name the normal ones with --normal-class, or give their folder." in result.stderr
    assert not Path("x.safetensors").exists()
    run(verb, *model, "parts", "--normal-class", classes[0], "-o", "x.safetensors", *options)


def test_subfolders_that_say_nothing_are_taken_together():
    for seed, name in enumerate(("monday", "tuesday")):
        save(f"parts/{name}", seed=seed)
    result = run("fit", "parts", "-o", "m.safetensors", *OPTIONS)
    assert "parts has classes ('monday', 'tuesday'), and all images are taken as normal" in result.stderr
    assert "Fitted on 40 normal rows" in result.stderr


def test_colours_of_all_kinds_are_scored_alike(model):
    save("grey", n=3)
    save("parts", n=3, seed=0)
    for seed, (mode, suffix) in enumerate([("CMYK", ".tif"), ("RGBA", ".png"), ("LA", ".png"), ("P", ".png")], start=0):
        save(f"parts/{mode}{seed}", n=3, seed=0, mode=mode, suffix=suffix)
    run("score", model, "parts", "-o", "s.csv", "--top", 0)
    scores = read_predictions("s.csv")
    assert len(scores) == 15
    assert scores["reason"].isna().all()
    by_image = scores.assign(image=scores["path"].str[-7:-4]).groupby("image")["anomaly_score"]
    assert (by_image.max() - by_image.min() < 0.05).all()


def test_broken_files_are_left_out_of_training_and_named_in_scores(model):
    save("parts", n=20)
    whole = Path("parts/0_000.png").read_bytes()
    Path("parts/empty.png").touch()
    Path("parts/cut.png").write_bytes(whole[: len(whole) // 2])
    bomb("parts/bomb.png")
    result = run("fit", "parts", "-o", "m.safetensors", *OPTIONS)
    assert "Left out 3 images, such as parts/bomb.png: the image has more than 67,108,864 pixels" in result.stderr
    assert "Fitted on 20 normal rows" in result.stderr
    run("score", model, "parts", "-o", "s.csv")
    reasons = read_predictions("s.csv").set_index("path")["reason"].dropna()
    assert reasons["empty.png"] == "the file is empty"
    assert reasons["cut.png"] == "the image is damaged or cut short"
    assert reasons["bomb.png"].endswith("pixels; cut it into tiles")


def test_nothing_but_broken_files(model):
    Path("parts").mkdir()
    for name in "ab":
        Path(f"parts/{name}.png").touch()
    result = run("fit", "parts", "-o", "x.safetensors", exit_code=3)
    assert "None of 2 images can be decoded; the first is parts/a.png: the file is empty." in result.stderr
    result = run("report", model, "parts", "-o", "out", exit_code=3)
    assert "parts has no row that can be scored." in result.stderr
    run("score", model, "parts", "-o", "s.csv")
    assert read_predictions("s.csv")["anomaly_score"].isna().all()
    assert not Path("x.safetensors").exists()
    assert not Path("out").exists()


def test_images_that_are_there_twice_are_mentioned():
    save("parts", n=20)
    for number in range(3):
        Path(f"parts/copy{number}.png").write_bytes(Path(f"parts/0_{number:03}.png").read_bytes())
    result = run("fit", "parts", "-o", "m.safetensors", *OPTIONS)
    assert "3 of them are equal to another one" in result.stderr


def test_sizes_that_no_network_takes():
    save("parts", n=3)
    assert "is not in the range" in run("fit", "parts", "--size", 100_000, "-o", "x", exit_code=2).stderr


def test_tables_in_a_folder_are_still_read():
    Path("tables").mkdir()
    mixed().to_csv("tables/a.csv", index=False)
    run("fit", "tables", "-o", "t.safetensors", "--max-steps", 20, "--estimators", 2, "--hidden", "8")
