import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tables import TINY_OPTIONS, mixed, read_predictions, run
from test_pixels import discs

from vae_anomaly import predictions

OPTIONS = ("--net", "mlp", "--latent-dim", 4, "--max-steps", 60, "--estimators", 2, "--hidden", "16")


def save(folder, images):
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray((image[0] * 255).astype(np.uint8)).save(folder / f"{number:03}.png")


@pytest.fixture(scope="module")
def plant(tmp_path_factory):
    """Folder in the layout of MVTec AD, and a model of its good parts."""
    folder = tmp_path_factory.mktemp("plant")
    save(folder / "disc/train/good", discs(80))
    save(folder / "disc/test/good", discs(20, 1))
    save(folder / "disc/test/hole", discs(10, 2, holes=True))
    (folder / "disc/test/good/broken.png").write_bytes(b"\x89PNG no")
    run("fit", folder / "disc", "-o", folder / "disc.safetensors", *OPTIONS)
    return folder


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_good_parts_train_and_new_ones_are_scored(plant):
    result = run("score", plant / "disc.safetensors", plant / "disc", "-o", "s.csv", "--json")
    summary = json.loads(result.stdout)
    assert (summary["rows"], summary["not_scored"]) == (31, 1)
    predictions = read_predictions("s.csv").set_index("path")
    assert predictions.index[0] == "test/good/000.png"
    assert predictions.loc["test/good/broken.png", "reason"]
    assert predictions.loc["test/hole/003.png", "top_features"].startswith("row ")
    holes = predictions.index.str.startswith("test/hole")
    assert predictions["anomaly_score"][holes].median() > predictions["anomaly_score"][~holes].median()


def test_one_image_scores_as_it_does_among_others(plant):
    run("score", plant / "disc.safetensors", plant / "disc", "-o", "all.csv")
    run("score", plant / "disc.safetensors", plant / "disc/test/hole/003.png", "-o", "one.csv")
    among = read_predictions("all.csv").set_index("path").loc["test/hole/003.png", "anomaly_score"]
    assert read_predictions("one.csv")["anomaly_score"].tolist() == [among]


def test_maps_mirror_the_images_and_sum_to_the_scores(plant):
    run("score", plant / "disc.safetensors", plant / "disc", "-o", "s.csv", "--maps", "maps")
    predictions = read_predictions("s.csv").set_index("path")
    assert not Path("maps/test/good/broken.npy").exists()
    for name in ("test/hole/003", "test/good/011"):
        written = np.load(f"maps/{name}.npy")
        assert written.dtype == np.float32
        assert written.sum() == pytest.approx(predictions.loc[f"{name}.png", "anomaly_score"], abs=1e-3)
        assert Image.open(f"maps/{name}.png").size == (12, 12)
    run("score", plant / "disc.safetensors", plant / "disc", "-o", "t.csv", "--maps", "maps", exit_code=2)


def test_images_are_not_replaced_by_their_maps(plant):
    save(Path("new"), discs(3))
    arguments = ("score", plant / "disc.safetensors", "new", "--overwrite")
    before = Path("new/000.png").read_bytes()
    result = run(*arguments, "-o", "s.csv", "--maps", "new", exit_code=2)
    assert "--maps new: new/000.png would replace what is read. Name another folder." in result.stderr
    assert Path("new/000.png").read_bytes() == before
    fitted = run("fit", "new", "-o", "new/000.png", *OPTIONS, "--overwrite", exit_code=2)
    assert "-o new/000.png: this would lie among the files of new, which are read." in fitted.stderr
    # A table is none of the images.
    run(*arguments, "-o", "new/s.csv")


def test_a_report_shows_the_images(plant):
    run("report", plant / "disc.safetensors", plant / "disc", "-o", "out", "--type", "kind")
    metrics = json.loads(Path("out/metrics.json").read_text())
    assert (metrics["n_normal"], metrics["n_anomalies"]) == (20, 10)
    assert metrics["types"][0]["name"] == "hole"
    page = Path("out/report.html").read_text()
    assert "Images to look at" in page
    assert "Images drawn from the model" in page
    assert "What latent units mean" in page
    assert "test/hole/00" in page
    assert Path("out/report.html").stat().st_size < 2_000_000
    run("report", plant / "disc.safetensors", plant / "disc", "-o", "again", "--type", "kind")
    assert Path("again/report.html").read_bytes() == Path("out/report.html").read_bytes()


def test_an_array_and_a_list_of_paths_work_like_a_folder(plant):
    np.save("discs.npy", (discs(80)[:, 0] * 255).astype(np.uint8))
    run("fit", "discs.npy", "-o", "a.safetensors", *OPTIONS)
    paths = [str(plant / f"disc/test/hole/{n:03}.png") for n in range(4)]
    pd.DataFrame({"path": paths}).to_csv("list.csv", index=False)
    run("score", "a.safetensors", "list.csv", "--images", "-o", "s.csv")
    assert len(read_predictions("s.csv")) == 4


@pytest.mark.parametrize("options", [(), ("--backbone", "gabor")])
def test_weights_without_their_backbone(plant, options):
    result = run("fit", plant / "disc", "-o", "w.safetensors", "--weights", __file__, *options, exit_code=2)
    assert "name the backbone that they belong to with --backbone: resnet18, " in result.stderr


def test_classes_say_what_is_normal(plant):
    run("fit", plant / "disc/test", "--normal-class", "good", "--fpr", 0.2, "-o", "g.safetensors", *OPTIONS)
    result = run("calibrate", "g.safetensors", plant / "disc/train", "-o", "h.safetensors", "--fpr", 0.1)
    assert "80 calibration rows" in result.stderr
    run("inspect", "h.safetensors")


@pytest.mark.parametrize(("arguments", "sentence"), [
    (("fit", "normal.csv", "--size", 16, "-o", "x.safetensors"), "--size is for images"),
    (("fit", "{plant}/disc", "--drop", "a", "-o", "x.safetensors"), "--drop is for tables"),
    (("score", "table.safetensors", "{plant}/disc"), "the model was fitted on a table"),
    (("score", "table.safetensors", "normal.csv", "--maps", "m"), "--maps is for images"),
])  # fmt: skip
def test_what_goes_together(plant, arguments, sentence):
    mixed().to_csv("normal.csv", index=False)
    run("fit", "normal.csv", "-o", "table.safetensors", *TINY_OPTIONS)
    result = run(*(str(argument).format(plant=plant) for argument in arguments), exit_code=2)
    assert sentence in result.stderr
    assert not Path("x.safetensors").exists()


def test_a_data_set_that_cannot_be_had_says_so(monkeypatch):
    import torchvision

    def offline(*_, **__):
        raise RuntimeError("no network")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", offline)
    result = run("fit", "mnist", "--normal-class", "1", "--root", ".", "-o", "m.safetensors", exit_code=3)
    assert "mnist" in result.stderr
    assert not Path("m.safetensors").exists()


def test_images_are_drawn_on_a_sheet_or_as_an_array(plant):
    run("sample", plant / "disc.safetensors", "-n", 5, "-o", "drawn.png")
    # Three in a line, two pixels between them.
    assert Image.open("drawn.png").size == (3 * 14 + 2, 2 * 14 + 2)
    run("sample", plant / "disc.safetensors", "-n", 5, "-o", "drawn.npy")
    assert np.load("drawn.npy").shape == (5, 12, 12, 1)
    result = run("sample", plant / "disc.safetensors", exit_code=2)
    assert "images go to a file that ends in .png" in result.stderr


def test_images_have_no_columns_but_their_kind(plant):
    result = run("fit", plant / "disc", "--group", "machine", "-o", "x.safetensors", exit_code=2)
    assert "Images have no column 'machine'" in result.stderr


def test_images_that_differ_in_their_suffix_alone_keep_their_maps_in_any_batch(plant, monkeypatch):
    monkeypatch.setattr(predictions, "MAX_IMAGES_AT_ONCE", 1)
    save(Path("new"), discs(3))
    Image.open("new/000.png").save("new/000.bmp")
    run("score", plant / "disc.safetensors", "new", "-o", "s.csv", "--maps", "maps")
    assert {path.name for path in Path("maps").iterdir()} >= {"000.bmp.npy", "000.png.npy", "001.npy", "002.npy"}


def test_arrays_that_are_damaged(plant):
    Path("cut.npz").write_bytes(b"PK\x03\x04 and no more")
    Path("empty.npy").touch()
    for name in ("cut.npz", "empty.npy"):
        result = run("score", plant / "disc.safetensors", name, "-o", "s.csv", exit_code=3)
        assert name in result.stderr
        assert "Unexpected" not in result.stderr


@pytest.mark.parametrize(("arguments", "sentence"), [
    (("fit", "{plant}/disc", "--size", 16, "--max-rows", 20, "-o", "x.safetensors"), "--max-rows is for tables"),
    (("fit", "{plant}/disc", "--max-rows", 20, "-o", "x.safetensors"), "--max-rows is for tables"),
    (("fit", "-", "--images", "-o", "x.safetensors"), "images are read from files, never from standard input"),
    (("score", "{plant}/disc.safetensors", "-", "--images"), "images are read from files, never from standard input"),
])  # fmt: skip
def test_what_images_are_not_for(plant, arguments, sentence):
    assert sentence in run(*(str(argument).format(plant=plant) for argument in arguments), exit_code=2).stderr


@pytest.mark.parametrize("name", ["nosuch", "nosuch/", "nosuch.png", "nosuch.csv"])
def test_data_that_are_not_there(plant, name):
    assert f"{name} does not exist" in run("score", plant / "disc.safetensors", name, "-o", "s.csv", exit_code=3).stderr


def test_images_by_class_are_judged_by_class(plant):
    save(Path("new/good"), discs(30, 5))
    save(Path("new/hole"), discs(4, 6, holes=True))
    run("fit", "new", "--normal-class", "good", "--group", "kind", "-o", "m.safetensors", *OPTIONS, "--fpr", 0.1)
    run("score", "m.safetensors", "new", "-o", "s.csv")
    rules = read_predictions("s.csv").set_index("path")["rule"].dropna()
    assert rules[rules.index.str.startswith("new/good") | rules.index.str.startswith("good")].str.contains("good").all()


def test_folders_are_told_apart_as_they_are_read(plant):
    save(Path("parts"), discs(20, 5))
    Path("linked").mkdir()
    Path("linked/more").symlink_to(Path("parts").resolve())
    run("fit", "linked", "-o", "m.safetensors", *OPTIONS, "--fpr", 0.2)
    Path("tables").mkdir()
    mixed().to_csv("tables/a.csv", index=False)
    Image.new("L", (8, 8)).save("tables/.thumb.png")
    run("fit", "tables", "-o", "t.safetensors", *TINY_OPTIONS)


def test_a_threshold_is_chosen_on_the_classes_of_a_folder(plant):
    save(Path("new/good"), discs(30, 5))
    save(Path("new/hole"), discs(8, 6, holes=True))
    asked = ("calibrate", plant / "disc.safetensors", "new", "--threshold", "youden", "-o", "c.safetensors")
    assert "name the classes of normal images by --normal-class" in run(*asked, exit_code=2).stderr
    summary = json.loads(run(*asked, "--normal-class", "good", "--json").stdout)
    assert (summary["labels"]["n_normal"], summary["labels"]["n_anomalies"]) == (30, 8)


def test_a_report_of_images_has_no_empty_column(plant):
    run("report", plant / "disc.safetensors", plant / "disc", "-o", "r")
    assert "What raised the score" not in Path("r/report.html").read_text()


def test_files_of_other_formats_are_not_passed_over_in_silence(plant):
    save(Path("parts"), discs(20, 5))
    Image.new("L", (8, 8)).save("parts/new.gif")
    sentence = "Passed over 1 file that is no image of a known format."
    assert sentence in run("fit", "parts", "-o", "m.safetensors", *OPTIONS, "--fpr", 0.2).stderr
    assert sentence in run("score", "m.safetensors", "parts", "-o", "s.csv").stderr
    Path("parts/notes.txt").touch()
    assert "Passed over 2 files that are no images" in run("score", "m.safetensors", "parts", "-o", "t.csv").stderr
    assert "Passed" not in run("score", "m.safetensors", "parts/000.png", "-o", "u.csv").stderr
