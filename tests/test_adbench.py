"""The benchmark script runs what is left, and writes its page."""

import json

import numpy as np
import pytest
from benchmarks import load_benchmark

from vae_anomaly import scores

FAST = ("--set", "max_steps=5", "n_estimators=1", "hidden=(8,)")


@pytest.fixture(scope="module")
def adbench():
    return load_benchmark("adbench")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two small sets in ADBench's format; labels of the second are a column."""
    folder, rng = tmp_path_factory.mktemp("sets"), np.random.default_rng(0)
    y = (rng.random(90) < 0.2).astype(int)
    np.savez(folder / "1_one.npz", X=rng.normal(size=(90, 3)) + 2 * y[:, None], y=y)
    np.savez(folder / "2_two.npz", X=rng.normal(size=(90, 2)) + 2 * y[:, None], y=y[:, None])
    return folder


@pytest.fixture(scope="module")
def runs(adbench, folder, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs") / "runs.jsonl"
    adbench.main(["--data", str(folder), "--seeds", "0", "1", "--runs", str(runs), *FAST])
    return runs


def test_a_line_for_each_set_seed_and_method(runs):
    lines = [json.loads(line) for line in runs.read_text().splitlines()]
    variant = "hidden=(8,), max_steps=5, n_estimators=1"
    assert {(line["dataset"], line["seed"], line["method"], line["variant"]) for line in lines} == {
        (dataset, seed, method, variant if method == "vae" else "default")
        for dataset in ("1_one", "2_two")
        for seed in (0, 1)
        for method in ("vae", "knn", "lof", "isolation_forest")
    }
    assert len(lines) == 16
    for line in lines:
        assert 0 <= line["average_precision"] <= 1
        assert line["roc_auc"] > 0.5 or line["method"] == "vae"
        assert line["n_train"] + line["n_test"] == 90
        assert line["d"] == {"1_one": 3, "2_two": 2}[line["dataset"]]
        assert set(line["versions"]) == {"vae_anomaly", "torch", "scikit-learn", "numpy"}
        assert set(line["machine"]) == {"machine", "cpus", "threads"}
        assert ("false_positive_rate" in line) == (line["method"] == "vae")


def test_constants_may_be_set_and_are_set_back(adbench, folder, tmp_path):
    arguments = ["--data", str(folder), "--only", "one", "--runs", str(tmp_path / "runs.jsonl"), *FAST]
    figures = {}
    for share in (0.0, 1.0):
        adbench.main([*arguments, f"scores.NEARBY_SHARE={share}"])
    for line in (tmp_path / "runs.jsonl").read_text().splitlines():
        run = json.loads(line)
        figures[run["variant"]] = run["average_precision"]
    assert len({value for name, value in figures.items() if "NEARBY_SHARE" in name}) == 2
    assert scores.NEARBY_SHARE not in (0.0, 1.0)
    with pytest.raises(SystemExit, match="NO_SUCH"):
        adbench.main([*arguments, "scores.NO_SUCH=1"])


def test_what_is_there_is_not_run_again(adbench, folder, runs, capsys):
    before = runs.read_bytes()
    adbench.main(["--data", str(folder), "--seeds", "0", "1", "--runs", str(runs), *FAST])
    assert runs.read_bytes() == before
    assert capsys.readouterr().out == "16 of 16 runs are there, 0 are left.\n"


def test_another_variant_runs_the_vae_only(adbench, folder, runs, tmp_path, capsys):
    copy = tmp_path / "runs.jsonl"
    copy.write_bytes(runs.read_bytes())
    adbench.main(["--data", str(folder), "--only", "two", "--runs", str(copy), *FAST, "beta=0.5"])
    assert "3 of 4 runs are there, 1 are left." in capsys.readouterr().out
    added = json.loads(copy.read_text().splitlines()[-1])
    assert (added["dataset"], added["method"]) == ("2_two", "vae")
    assert added["variant"] == "beta=0.5, hidden=(8,), max_steps=5, n_estimators=1"


def test_an_unfinished_line_is_run_again(adbench, folder, runs, tmp_path):
    copy = tmp_path / "runs.jsonl"
    copy.write_bytes(runs.read_bytes()[:-20])
    adbench.main(["--data", str(folder), "--seeds", "0", "1", "--runs", str(copy), *FAST])
    assert {adbench.key(run) for run in adbench.read_runs(copy)} == {
        adbench.key(run) for run in adbench.read_runs(runs)
    }
    assert len(adbench.read_runs(copy)) == 16


def test_protocol_b_tests_no_row_that_trains(adbench, folder):
    train, test, y = adbench.protocol_b(folder / "1_one.npz", seed=3)
    with np.load(folder / "1_one.npz") as file:
        X, labels = file["X"], file["y"]
    assert not {*map(tuple, train)} & {*map(tuple, test)}
    assert {*map(tuple, train), *map(tuple, test)} == {*map(tuple, X)}
    assert {*map(tuple, test[y == 1])} == {*map(tuple, X[labels == 1])}
    assert len(train) == (labels == 0).sum() // 2


def test_further_scores_come_from_the_same_fit(adbench, folder, tmp_path):
    runs = tmp_path / "runs.jsonl"
    arguments = ["--data", str(folder), "--only", "one", "--scores", "kl", "neg_elbo", "--runs", str(runs), *FAST]
    adbench.main(arguments)
    lines = [run for run in adbench.read_runs(runs) if run["method"] == "vae"]
    assert [line["variant"].rpartition(", ")[2] for line in lines] == [
        "n_estimators=1",
        "score_name='kl'",
        "score_name='neg_elbo'",
    ]
    assert len({line["fit_seconds"] for line in lines}) == 1
    assert len({line["roc_auc"] for line in lines}) > 1


def test_contamination_moves_anomalies_to_the_training_rows(adbench, folder, tmp_path):
    clean, dirty = (adbench.protocol_b(folder / "1_one.npz", 3, share) for share in (0.0, 0.1))
    n_moved = len(dirty[0]) - len(clean[0])
    assert n_moved == round(len(clean[0]) / 9)
    assert dirty[2].sum() == clean[2].sum() - n_moved
    assert not {*map(tuple, dirty[0])} & {*map(tuple, dirty[1])}
    runs = tmp_path / "runs.jsonl"
    for share in ("0", "0.1"):
        adbench.main(["--data", str(folder), "--only", "one", "--contamination", share, "--runs", str(runs), *FAST])
    assert len(adbench.read_runs(runs)) == 8
    adbench.main(["--table", "--runs", str(runs)])
    assert "| knn, 10% contaminated |" in runs.with_suffix(".md").read_text()


def test_table(adbench, runs, tmp_path, capsys):
    published = tmp_path / "published.csv"
    published.write_text("dataset,method,auc_roc,auc_pr\n1_one,KDE,88.8,77.7\n1_one,AE,,66.6\n9_other,MCM,1,1\n")
    copy = tmp_path / "runs.jsonl"
    copy.write_bytes(runs.read_bytes())
    adbench.main(["--table", "--runs", str(copy), "--published", str(published)])
    page = (tmp_path / "runs.md").read_text()
    assert capsys.readouterr().out == f"Wrote {tmp_path / 'runs.md'}.\n"
    assert "2 sets, seeds 0, 1" in page
    assert "| *AE* | *KDE* |" in page
    assert "MCM" not in page
    figures = [run for run in adbench.read_runs(runs) if run["method"] == "knn"]
    mean = 100 * np.mean([run["roc_auc"] for run in figures])
    assert any(line.startswith(f"| knn | {mean:.2f} |") for line in page.splitlines())
    one = 100 * np.mean([run["roc_auc"] for run in figures if run["dataset"] == "1_one"])
    (line,) = [line for line in page[: page.index("## Average")].splitlines() if line.startswith("| 1_one |")]
    assert f"{one:.1f}" in line
    assert line.endswith("| - | 88.8 |")
    assert "| **88.8** * |" in page


def test_nothing_to_do(adbench, tmp_path):
    with pytest.raises(SystemExit, match="holds no runs yet"):
        adbench.main(["--table", "--runs", str(tmp_path / "none.jsonl")])
    with pytest.raises(SystemExit, match="there is no such"):
        adbench.main(["--data", str(tmp_path)])
    with pytest.raises(SystemExit):
        adbench.main([])
