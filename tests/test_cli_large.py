"""fit on tables that are larger than the memory that it may take, or on a sample of their rows."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tables import TINY_OPTIONS, labelled, mixed, run

from vae_anomaly import in_parts
from vae_anomaly.cli.large import Size
from vae_anomaly.data import batches, read
from vae_anomaly.data.large import LargeTable, memory_needed
from vae_anomaly.detector import load


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def fit(data, *options, exit_code=0, **more):
    return run("fit", data, "-o", "m.safetensors", "--overwrite", *TINY_OPTIONS, *options, exit_code=exit_code, **more)


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(batches, "MAX_ROWS", 37)


def stored(frame, where):
    """The same table as one file, or as a folder of several."""
    if where != "folder":
        frame.to_csv("t.csv", index=False) if where == "t.csv" else frame.to_parquet(where, index=False)
        return where
    (folder := Path("folder")).mkdir()
    for number, part in enumerate(np.array_split(np.arange(len(frame)), 3)):
        frame.iloc[part].to_csv(folder / f"{number}.csv", index=False)
    return "folder"


@pytest.mark.parametrize("where", ["t.csv", "t.parquet", "folder"])
def test_too_large_a_table_gives_the_model_that_memory_gives(where, small_batches):
    frame = labelled(300)
    frame["group"] = np.where(np.arange(300) % 2, "a", "b")
    data, options = stored(frame, where), ("--label", "anomaly", "--group", "group", "--fpr", "0.2")
    whole = fit(data, *options, "--json").stdout
    expected = load("m.safetensors").anomaly_score(mixed(50, seed=5))
    result = fit(data, *options, "--max-memory", "1K", "--json")
    assert json.loads(result.stdout) == json.loads(whole)
    assert "its rows are encoded into a temporary file" in result.stderr
    np.testing.assert_array_equal(load("m.safetensors").anomaly_score(mixed(50, seed=5)), expected)


def test_max_rows_is_a_uniform_sample_that_is_stated(small_batches):
    """Rows of the whole file, not its first ones; the same ones however the file is read."""
    frame = labelled(400)
    frame["flow"] = np.arange(400.0)
    frame.to_csv("t.csv", index=False)
    frame.to_parquet("t.parquet", index=False)
    options = ("--label", "anomaly", "--max-rows", "90", "--fpr", "0.2", "--seed", "4")
    columns = []
    for data, source in (("t.csv", {}), ("t.parquet", {}), ("-", {"input": frame.to_csv(index=False)})):
        result = fit(data, *options, "--json", **source)
        assert "Drew 90 of the 360 normal rows, uniformly, by the seed 4." in result.stderr
        summary = json.loads(result.stdout)
        found = {name: summary[name] for name in ("rows", "normal_rows", "anomalies_left_out", "sampled", "trained_on")}
        assert found == {
            "rows": 400, "normal_rows": 360, "anomalies_left_out": 40, "sampled": 90, "trained_on": 90,
        }  # fmt: skip
        model = load("m.safetensors")
        assert model.notes_["sample"] == {"rows": 90, "normal_rows": 360, "seed": 4}
        columns.append(model.schema_.columns[0])
    assert columns[0] == columns[1] == columns[2]
    assert columns[0].low < 50
    assert columns[0].high > 350


def test_a_sample_knows_where_its_rows_are(small_batches):
    frame = labelled(300)
    stored(frame, "folder")
    whole, sample = read("folder", label="anomaly"), LargeTable("folder", label="anomaly").sample(40, seed=0)
    for place in range(0, 40, 7):
        row = int(sample.rows[place])
        assert whole.y[row] == 0
        assert sample.locate(place) == whole.locate(row)
        assert sample.X["pressure"][place] == whole.X["pressure"][row]


def test_columns_known_from_a_sample_are_said_to_be(monkeypatch):
    monkeypatch.setattr(in_parts, "MIN_SAMPLE_ROWS", 100)
    monkeypatch.setattr(in_parts, "SAMPLE_ENTRIES", 0)
    mixed(300).to_csv("t.csv", index=False)
    result = fit("t.csv", "--max-memory", "1K")
    assert "scales and categories come from 100 of the 300 normal rows, drawn uniformly" in result.stderr
    assert load("m.safetensors").notes_["columns_sample"] == {"rows": 100, "normal_rows": 300, "seed": 0}


def test_a_cell_of_a_large_table_is_located(small_batches):
    frame = labelled(300).astype({"count": float})
    normal = frame.index[frame["anomaly"] == 0]
    frame.loc[normal[200], "count"] = np.inf
    frame.to_parquet("t.parquet", index=False)
    for options in (("--max-memory", "1K"), ("--max-rows", "10000")):
        result = fit("t.parquet", "--label", "anomaly", *options, exit_code=3)
        assert f"t.parquet, row {normal[200] + 1}, column 'count': inf is not finite" in result.stderr


@pytest.mark.parametrize("options", [("--max-memory", "1K"), ("--max-rows", "50")])
def test_labels_are_refused_as_in_memory(options):
    frame = labelled(100)
    frame["anomaly"] = np.where(frame["anomaly"] == 1, "leak", "ok")
    frame.to_csv("t.csv", index=False)
    for more in ((), ("--normal-value", "fine"), ("--normal-value", "leak", "--drop", "nowhere")):
        whole = fit("t.csv", "--label", "anomaly", *more, exit_code=3)
        large = fit("t.csv", "--label", "anomaly", *more, *options, exit_code=3)
        assert large.stderr == whole.stderr
    frame[frame["anomaly"] == "leak"].assign(anomaly=1).to_csv("t.csv", index=False)
    result = fit("t.csv", "--label", "anomaly", *options, exit_code=3)
    assert "has no row labelled normal, and at least 2 are needed to fit" in result.stderr


def test_options_that_do_not_suit(tmp_path):
    from PIL import Image

    (tmp_path / "images").mkdir()
    for number in range(3):
        Image.new("L", (8, 8), number).save(tmp_path / "images" / f"{number}.png")
    result = fit("images", "--max-rows", "2", exit_code=2)
    assert "--max-rows is for tables, and images holds images" in result.stderr
    mixed(50).to_csv("t.csv", index=False)
    for value in ("much", "0", "-3GB", "4iB", "nanGB", ""):
        assert "must be a size, such as 4GB" in fit("t.csv", "--max-memory", value, exit_code=2).stderr
    assert "--flip is for images" in fit("t.csv", "--max-memory", "1K", "--flip", "h", exit_code=2).stderr


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("4GB", 4 * 10**9), ("1.5GiB", 3 * 2**29), ("500m", 500 * 10**6), ("12", 12), ("2 TB", 2 * 10**12), ("8K", 8000)],
)
def test_sizes(text, n_bytes):
    assert Size().convert(text, None, None) == n_bytes


def test_memory_is_estimated_from_rows_and_columns_not_from_packed_bytes():
    frame = pd.DataFrame({"x": np.zeros(10_000), "y": np.zeros(10_000)})
    frame.to_parquet("t.parquet", index=False)
    assert memory_needed("t.parquet") > 10_000 * 2 * 8 * 2
    frame.to_csv("t.csv", index=False)
    frame.to_csv("t.csv.gz", index=False)
    assert memory_needed("t.csv") > 2 * 4 * 10_000
    assert memory_needed(".") == sum(map(memory_needed, ("t.parquet", "t.csv", "t.csv.gz")))
