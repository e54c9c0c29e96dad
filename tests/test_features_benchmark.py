"""The benchmark of features draws its images from a seed, runs what is left, and writes its page."""

import json

import numpy as np
import pytest
from benchmarks import load_benchmark

FAST = ("--numbers", "6", "3", "1", "--set", "max_steps=5", "n_estimators=1", "hidden=(8,)")


@pytest.fixture(scope="module")
def features():
    return load_benchmark("features")


@pytest.mark.parametrize(("scene", "defect"), [("granite", "scratch"), ("screw", "thread"), ("board", "missing")])
def test_a_seed_draws_one_image_and_its_mask_says_where_it_is_spoilt(features, scene, defect):
    image, mask = features.made(scene, 3, defect)
    again, same = features.made(scene, 3, defect)
    assert np.array_equal(image, again)
    assert np.array_equal(mask, same)
    assert image.shape == (256, 256, 3)
    assert image.dtype == np.uint8
    assert 0 < mask.mean() < 0.2


def test_a_line_for_each_score_and_none_twice(features, tmp_path, capsys):
    runs = tmp_path / "runs.jsonl"
    arguments = ["--scenes", "gear", "--scores", "kl", "--runs", str(runs), *FAST]
    features.main(arguments)
    lines = [json.loads(line) for line in runs.read_text().splitlines()]
    assert [line["score"] for line in lines] == ["kl", "novelty"]
    for line in lines:
        assert 0 <= line["roc_auc"] <= 1
        assert 0 <= line["aupro"] <= 1
        assert line["n_test"] == 3 + len(line["by_kind"])
        assert ("good_flagged" in line) == (line["score"] == "novelty")
    before = runs.read_bytes()
    features.main(arguments)
    assert runs.read_bytes() == before
    features.main(["--table", "--runs", str(runs)])
    page = (tmp_path / "runs.md").read_text()
    assert "| gear |" in page
    assert "hidden=(8,), max_steps=5" in page
    with pytest.raises(SystemExit, match="holds no runs yet"):
        features.main(["--table", "--runs", str(tmp_path / "none.jsonl")])
