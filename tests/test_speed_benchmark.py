"""The benchmark of speed measures what is left; here on tables too small to say how fast anything is."""

import json
import math
import sys

import pytest
import torch
from benchmarks import load_benchmark


@pytest.fixture
def benchmark(monkeypatch):
    speed = load_benchmark("speed")
    table_of = speed.table_of
    monkeypatch.setattr(speed, "table_of", lambda n_rows, *args, **kwargs: table_of(min(n_rows, 200), *args, **kwargs))
    monkeypatch.setattr(speed, "FEW_STEPS", 3)
    return speed


def measured(benchmark, monkeypatch, runs, *sections):
    threads = str(torch.get_num_threads())
    arguments = ["--only", *sections, "--quick", "--pairs", "1", "--threads", threads, "--runs", str(runs)]
    monkeypatch.setattr(sys, "argv", ["speed.py", *arguments])
    benchmark.main()
    return [json.loads(line) for line in runs.read_text(encoding="utf-8").splitlines()]


def test_scores_beside_the_same_sums_by_hand(benchmark, monkeypatch, tmp_path, capsys):
    runs = tmp_path / "speed.jsonl"
    lines = measured(benchmark, monkeypatch, runs, "bare")
    assert [(line["section"], line["name"]) for line in lines] == [
        ("bare", "neg_log_px_z"),
        ("bare", "novelty"),
        ("single row", "30 columns, default model"),
    ]
    *beside, alone = lines
    for line in beside:
        assert line["ratio"] == pytest.approx(line["ours_seconds"] / line["theirs_seconds"])
    assert 0 < alone["milliseconds"] <= alone["slow_milliseconds"] < math.inf
    assert all({"torch", "vae_anomaly"} <= line["versions"].keys() for line in lines)
    # What stands there is not measured again.
    assert measured(benchmark, monkeypatch, runs, "bare") == lines


def test_what_needs_data_is_left_out_with_a_line_that_says_so(benchmark, monkeypatch, tmp_path, capsys):
    runs = tmp_path / "speed.jsonl"
    runs.touch()
    assert measured(benchmark, monkeypatch, runs, "quality") == []
    assert "quality: left out, as it needs --data." in capsys.readouterr().err
