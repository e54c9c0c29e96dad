import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn import metrics
from tables import TINY, TINY_OPTIONS, labelled, mixed, read_predictions, run

import vae_anomaly
from vae_anomaly.baselines import BASELINES, baseline_scores
from vae_anomaly.cli import VERBS, common
from vae_anomaly.cli.names import NAMES
from vae_anomaly.comparison import split_rows
from vae_anomaly.detector import VAEDetector, load
from vae_anomaly.persistence import load_model, save_model
from vae_anomaly.scores import SCORES, scores_for

SCRIPT = shutil.which("vae-anomaly", path=os.path.dirname(sys.executable))
needs_script = pytest.mark.skipif(SCRIPT is None, reason="the console script is not installed beside the interpreter")

PREDICTIONS = [
    "row", "anomaly_score", "p_value", "threshold", "is_anomaly", "rule", "top_features",
    "top_contributions", "reason",
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Model file of a tiny detector."""
    folder = tmp_path_factory.mktemp("model")
    mixed().to_csv(folder / "normal.csv", index=False)
    run("fit", folder / "normal.csv", "-o", folder / "pump.safetensors", *TINY_OPTIONS)
    return folder / "pump.safetensors"


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def save(frame, name="new.csv"):
    frame.to_csv(name, index=False)
    return name


def scores_of(model, frame, *options):
    run("score", model, save(frame), "-o", "scores.csv", "--overwrite", *options)
    return read_predictions("scores.csv")


# fit -----------------------------------------------------------------------------------------------------------------


def test_fit_gives_the_model_that_python_gives(model, tmp_path):
    detector = VAEDetector(**TINY).fit(mixed())
    rows = mixed(50, seed=1)
    assert np.array_equal(load(model).anomaly_score(rows), detector.anomaly_score(rows))
    assert load(model).threshold_ == detector.threshold_


def test_fit_says_what_it_did():
    result = run("fit", save(mixed()), "-o", "m.safetensors", *TINY_OPTIONS)
    assert result.stdout == ""
    assert "Fitted on 200 normal rows." in result.stderr
    assert "about 5 % of normal rows flagged on average (80 rows scored out of fold; the true rate is " in result.stderr
    assert "Wrote m.safetensors." in result.stderr


def test_fit_options_reach_the_detector():
    options = [
        "--fpr",
        "0.1",
        "--threshold",
        "quantile",
        "--score",
        "kl",
        "--prior",
        "vamp",
        "--seed",
        "3",
        "--beta",
        "0.5",
    ]
    run(
        "fit", save(mixed()), "-o", "m.safetensors", "--max-steps", 30, "--estimators", 1, "--hidden", "8,4",
        "--latent-dim", 3, "--likelihood", "mixed", "--min-scale", 0.1, "--batch-size", 64, "--learning-rate", 0.01,
        "--categorical", "count", "--device", "cpu", *options,
    )  # fmt: skip
    wanted = {
        "fpr": 0.1, "threshold": "quantile", "score_name": "kl", "prior": "vamp", "random_state": 3, "beta": 0.5,
        "max_steps": 30, "n_estimators": 1, "hidden": (8, 4), "latent_dim": 3, "likelihood": "mixed", "min_scale": 0.1,
        "batch_size": 64, "learning_rate": 0.01, "categorical_features": ("count",),
    }  # fmt: skip
    assert {name: value for name, value in load("m.safetensors").get_params().items() if name in wanted} == wanted
    assert [column.kind for column in load("m.safetensors").schema_.columns if column.name == "count"] == [
        "categorical"
    ]


def test_defaults_of_the_command_are_those_of_the_detector():
    defaults = VAEDetector().get_params() | {"hidden": ",".join(map(str, VAEDetector().hidden))}
    options = {param.name: param for param in importlib.import_module("vae_anomaly.cli.fit").command.params}
    for name in ("fpr", "threshold", "score_name", "likelihood", "prior", "n_estimators", "hidden", "beta", "min_scale",
                 "robust", "rank_share", "random_state", "device", "precision"):  # fmt: skip
        assert options[name].default == defaults[name], name
    for name in ("max_steps", "batch_size", "learning_rate"):
        assert defaults[name] is None
        assert not isinstance(options[name].default, (int, float)), name


def test_fit_leaves_labelled_anomalies_out():
    table = labelled(n_anomalies=40)
    table["anomaly"] = table["anomaly"].astype("Int64")
    table.loc[:4, "anomaly"] = pd.NA
    n_normal, n_anomalies = int((table["anomaly"] == 0).sum()), int((table["anomaly"] == 1).sum())
    result = run("fit", save(table), "-o", "m.safetensors", "--label", "anomaly", *TINY_OPTIONS)
    left_out = f"left out {n_anomalies} labelled anomalies and 5 rows without a label"
    assert f"Fitted on {n_normal} normal rows; {left_out}." in result.stderr
    normal = table[(table["anomaly"] == 0).fillna(False)].drop(columns="anomaly")
    rows = mixed(20, seed=2)
    detector = VAEDetector(**TINY).fit(normal)
    assert np.array_equal(load("m.safetensors").anomaly_score(rows), detector.anomaly_score(rows))


def test_label_normal_value_id_and_drop():
    table = mixed().assign(
        state=["ok", "fine", "leak", "ok"] * 50, pump=[f"p{i}" for i in range(200)], note=1.0, other=2.0
    )
    result = run(
        "fit", save(table), "-o", "m.safetensors", "--label", "state", "--normal-value", "ok", "--normal-value", "fine",
        "--id", "pump", "--drop", "note", "--drop", "other", "--json", *TINY_OPTIONS,
    )  # fmt: skip
    summary = json.loads(result.stdout)
    assert (summary["normal_rows"], summary["anomalies_left_out"]) == (150, 50)
    assert load("m.safetensors").feature_names_in_.tolist() == list(mixed().columns)
    run("score", "m.safetensors", "new.csv", "--id", "pump", "-o", "scores.csv")
    scores = read_predictions("scores.csv")
    assert list(scores.columns) == ["pump", *PREDICTIONS[1:]]
    assert scores["pump"].tolist() == table["pump"].tolist()


def test_fit_twice_gives_equal_bytes(model):
    run("fit", model.parent / "normal.csv", "-o", "again.safetensors", *TINY_OPTIONS)
    assert Path("again.safetensors").read_bytes() == model.read_bytes()


def test_fit_prints_json():
    result = run("fit", save(mixed()), "-o", "m.safetensors", "--json", *TINY_OPTIONS)
    summary = json.loads(result.stdout)
    assert summary.keys() >= {
        "model", "rows", "normal_rows", "anomalies_left_out", "unlabelled_left_out", "trained_on", "calibrated_on",
        "threshold", "fpr", "rule", "extrapolation", "active_units", "notes",
    }  # fmt: skip
    assert (summary["rows"], summary["trained_on"], summary["calibrated_on"]) == (200, 200, 80)
    assert summary["threshold"] == load("m.safetensors").threshold_


# score ---------------------------------------------------------------------------------------------------------------


def test_scores_in_the_shell_are_those_of_python(model):
    rows, detector = mixed(100, seed=1), load(model)
    table = scores_of(model, rows)
    assert list(table.columns) == PREDICTIONS
    assert table["row"].tolist() == list(range(1, 101))
    assert np.array_equal(table["anomaly_score"], detector.anomaly_score(rows))
    assert np.array_equal(table["p_value"], detector.p_value(rows))
    assert np.array_equal(table["is_anomaly"], (detector.predict(rows) == -1).astype(int))
    assert (table["threshold"] == detector.threshold_).all()
    assert table["reason"].isna().all()
    order = np.random.default_rng(0).permutation(100)
    shuffled = scores_of(model, rows.iloc[order])
    assert np.array_equal(shuffled["anomaly_score"], table["anomaly_score"].to_numpy()[order])
    assert shuffled["top_contributions"].tolist() == table["top_contributions"].iloc[order].tolist()
    for i in (0, 7, 99):
        assert scores_of(model, rows.iloc[[i]])["anomaly_score"][0] == table["anomaly_score"][i]


def test_top_features_are_those_with_the_largest_excess(model):
    rows, detector = mixed(20, seed=1), load(model)
    table = scores_of(model, rows, "--top", 2)
    excess = pd.DataFrame(detector.explain(rows) - detector.usual_shares_, columns=rows.columns)
    for i in range(20):
        largest = excess.loc[i].nlargest(2)
        assert table["top_features"][i].split("; ") == largest.index.tolist()
        np.testing.assert_allclose([float(x) for x in table["top_contributions"][i].split("; ")], largest, rtol=1e-3)


def test_no_top_features(model):
    assert scores_of(model, mixed(5), "--top", 0)["top_features"].isna().all()


def test_component_scores(model):
    rows = mixed(10, seed=1)
    table = scores_of(model, rows, *(option for name in scores_for(images=False) for option in ("--scores", name)))
    for name in scores_for(images=False):
        assert np.array_equal(table[name], load(model).anomaly_score(rows, score_name=name)), name


def test_rows_that_cannot_be_scored_have_a_reason(model):
    rows = mixed(6, seed=1).astype(object)
    rows.loc[1, :] = None
    rows.loc[2, "flow"] = np.inf
    rows.loc[3, "pressure"] = -np.inf
    rows.loc[4, "flow"] = None
    table = scores_of(model, rows)
    empty = [name for name in PREDICTIONS if name not in ("row", "reason")]
    assert table["row"].tolist() == [1, 2, 3, 4, 5, 6]
    assert table[empty].isna().all(axis=1).tolist() == [False, True, True, True, False, False]
    assert table["reason"].fillna("").tolist() == [
        "",
        "no value in any column that the model uses",
        "column 'flow' is infinite",
        "column 'pressure' is infinite",
        "",
        "",
    ]
    # Its neighbours score as they would without it.
    whole = load(model).anomaly_score(mixed(6, seed=1))
    assert np.array_equal(table["anomaly_score"][[0, 5]], whole[[0, 5]])
    assert "3 rows can't be scored" in run("score", model, "new.csv", "-o", "again.csv").stderr


def test_no_row_can_be_scored(model):
    rows = pd.DataFrame(np.full((2, 6), np.nan), columns=mixed().columns)
    result = run("score", model, save(rows), "-o", "scores.csv", "--json")
    assert json.loads(result.stdout)["scored"] == 0
    assert read_predictions("scores.csv")["reason"].notna().all()


def test_columns_may_come_in_another_order(model):
    rows = mixed(20, seed=1)
    assert scores_of(model, rows[rows.columns[::-1]]).equals(scores_of(model, rows))


def test_an_extra_column_is_ignored_and_mentioned(model):
    rows = mixed(20, seed=1)
    plain = scores_of(model, rows)
    result = run("score", model, save(rows.assign(lot="x7", anomaly=1)), "-o", "scores.csv", "--overwrite", "--json")
    assert read_predictions("scores.csv").equals(plain)
    assert "Ignored columns that the model does not know: 'lot', 'anomaly'." in result.stderr
    assert json.loads(result.stdout)["ignored_columns"] == ["lot", "anomaly"]


def test_an_unseen_category_is_scored(model):
    table = scores_of(model, mixed(20, seed=1).assign(mode="never seen", valve="ajar"))
    assert table["anomaly_score"].notna().all()
    assert table["anomaly_score"].mean() > scores_of(model, mixed(20, seed=1))["anomaly_score"].mean()


def test_categories_that_look_like_numbers():
    codes = ["007", "7", "1e3"] * 67
    train = mixed(201).assign(code=codes)
    Path("train.csv").write_text(train.to_csv(index=False))
    run("fit", "train.csv", "-o", "m.safetensors", "--categorical", "code", *TINY_OPTIONS)
    assert set(load("m.safetensors").schema_.columns[6].values) == {"007", "7", "1e3"}
    Path("new.csv").write_text(train.head(3).assign(code=["007", "7", "7"]).to_csv(index=False))
    run("score", "m.safetensors", "new.csv", "-o", "scores.csv")
    table = read_predictions("scores.csv")
    assert np.array_equal(
        table["anomaly_score"], load("m.safetensors").anomaly_score(train.head(3).assign(code=["007", "7", "7"]))
    )


def test_standard_input_and_output(model):
    rows = mixed(20, seed=1)
    result = run("score", model, "-", input=rows.to_csv(index=False))
    run("score", model, save(rows), "-o", "scores.csv")
    assert result.stdout == Path("scores.csv").read_text()
    assert "Flagged" in result.stderr


def test_parquet_in_and_out(model):
    rows = mixed(20, seed=1)
    rows.to_parquet("new.parquet")
    run("score", model, "new.parquet", "-o", "scores.parquet")
    table, wanted = pd.read_parquet("scores.parquet"), scores_of(model, rows)
    assert list(table.columns) == PREDICTIONS
    for name in ("row", "anomaly_score", "p_value", "threshold", "is_anomaly"):
        assert np.array_equal(table[name].to_numpy(float), wanted[name].to_numpy(float)), name
    assert table["top_features"].tolist() == wanted["top_features"].tolist()
    run("score", model, "-", "-o", "piped.parquet", input=Path("new.parquet").read_bytes())
    assert pd.read_parquet("piped.parquet").equals(table)


def test_numpy_arrays():
    rows = mixed()[["flow", "pressure", "count"]].to_numpy()
    np.save("rows.npy", rows)
    run("fit", "rows.npy", "-o", "m.safetensors", *TINY_OPTIONS)
    run("score", "m.safetensors", "rows.npy", "-o", "scores.csv")
    wanted = VAEDetector(**TINY).fit(rows).anomaly_score(rows)
    assert np.array_equal(read_predictions("scores.csv")["anomaly_score"], wanted)


def test_a_model_of_arrays_scores_files_by_position():
    rows = mixed()[["flow", "pressure"]]
    VAEDetector(**TINY).fit(rows.to_numpy()).save("m.safetensors")
    assert np.array_equal(
        scores_of("m.safetensors", rows)["anomaly_score"], load("m.safetensors").anomaly_score(rows.to_numpy())
    )


def test_a_folder_is_one_table(model):
    rows = mixed(30, seed=1)
    Path("parts").mkdir()
    save(rows.iloc[:10], "parts/a.csv")
    rows.iloc[10:].to_parquet("parts/b.parquet")
    run("score", model, "parts", "-o", "parts.csv")
    assert read_predictions("parts.csv").equals(scores_of(model, rows))


def test_score_prints_json(model):
    rows = mixed(20, seed=1)
    rows.loc[3:6, "pressure"] = -1e6
    result = run("score", model, save(rows), "-o", "scores.csv", "--json")
    summary = json.loads(result.stdout)
    n_flagged = int(read_predictions("scores.csv")["is_anomaly"].sum())
    assert n_flagged >= 4
    assert 0.0 < summary.pop("false_alarm_share") <= 1.0
    # Twenty rows are too few to see a drift.
    assert summary.pop("drift_p_value") is None
    assert summary == {
        "data": "new.csv", "output": "scores.csv", "rows": 20, "scored": 20, "flagged": n_flagged,
        "flagged_share": n_flagged / 20, "not_scored": 0, "ignored_columns": [], "fdr": None,
            "without_group": None,
    }  # fmt: skip


def test_rows_flagged_together_are_those_of_benjamini_and_hochberg(model):
    rows = mixed(100, seed=1)
    rows.loc[:19, "pressure"] = -1e6
    rows = rows.astype(object)
    rows.loc[50] = np.nan
    result = run("score", model, save(rows), "-o", "scores.csv", "--fdr", "0.2", "--json")
    table, summary = read_predictions("scores.csv"), json.loads(result.stdout)
    p = table["p_value"].dropna()
    flagged = stats.false_discovery_control(p) <= 0.2
    assert np.array_equal(table.loc[p.index, "is_anomaly"] == 1, flagged)
    assert 20 <= summary["flagged"] == flagged.sum() < 100
    assert (table["rule"].notna() == (table["is_anomaly"] == 1)).all()
    assert set(table["rule"].dropna()) == {"benjamini_hochberg fdr=0.2"}
    assert "threshold" not in table
    assert summary["fdr"] == 0.2
    assert table.loc[50, ["adjusted_p_value", "is_anomaly", "rule"]].isna().all()


def test_a_drift_is_told(model):
    run("calibrate", model, save(mixed(200, seed=9)), "-o", "set.safetensors")
    rows, model = mixed(300, seed=1), "set.safetensors"
    assert "Normal itself may have changed" not in run("score", model, save(rows), "-o", "same.csv").stderr
    rows["flow"] += rows["flow"].std()
    result = run("score", model, save(rows), "-o", "drifted.csv", "--json")
    assert "Normal itself may have changed" in result.stderr
    assert json.loads(result.stdout)["drift_p_value"] < 0.001


def test_each_flagged_row_names_its_rule(model):
    rows = mixed(20, seed=1)
    rows.loc[3:6, "pressure"] = -1e6
    table = scores_of(model, rows)
    assert set(table["rule"].dropna()) == {"conformal fpr=0.05"}
    assert (table["rule"].notna() == (table["is_anomaly"] == 1)).all()


@pytest.mark.parametrize(("rate", "exit_code"), [("0.5", 0), ("0.1", 6)])
def test_fail_above_rate(model, rate, exit_code):
    rows = mixed(20, seed=1)
    rows.loc[:4, "pressure"] = -1e6
    result = run("score", model, save(rows), "-o", "scores.csv", "--fail-above-rate", rate, "-q", exit_code=exit_code)
    assert ("of the rows are flagged, more than --fail-above-rate 0.1" in result.stderr) == (exit_code == 6)
    # The table is written either way: it says what failed.
    assert len(read_predictions("scores.csv")) == 20


def test_empty_lines_of_one_column_are_told_once(monkeypatch):
    monkeypatch.setattr("vae_anomaly.data.batches.BLOCK_SIZE", 200)
    cells = map(str, mixed()["flow"])
    Path("one.csv").write_text("flow\n" + "".join(f"{cell}\n\n" for cell in cells))
    run("fit", "one.csv", "-o", "m.safetensors", *TINY_OPTIONS)
    result = run("score", "m.safetensors", "one.csv", "-o", "s.csv")
    assert result.stderr.count("Warning: one.csv has empty lines, which are skipped") == 1


def test_rows_without_a_score_do_not_pass(model):
    rows = mixed(20, seed=1).assign(pressure=np.inf)
    result = run("score", model, save(rows), "-o", "scores.csv", "--fail-above-rate", 0.1, "-q", exit_code=6)
    assert "None of the 20 rows has a score to hold against --fail-above-rate 0.1." in result.stderr
    assert len(read_predictions("scores.csv")) == 20


@pytest.mark.filterwarnings("ignore::vae_anomaly.errors.CalibrationWarning")
def test_a_model_that_was_calibrated_on_too_few_rows_flags_nothing():
    VAEDetector(**TINY).fit(mixed(30)).save("m.safetensors")
    table = scores_of("m.safetensors", mixed(20, seed=1).assign(pressure=-1e9))
    assert (table["threshold"] == np.inf).all()
    assert (table["is_anomaly"] == 0).all()
    assert json.loads(run("inspect", "m.safetensors", "--json").stdout)["threshold"]["value"] is None
    save(mixed(50, seed=2))
    run("calibrate", "m.safetensors", "new.csv", "-o", "c.safetensors")
    assert np.isfinite(load("c.safetensors").threshold_)


def test_delimiters():
    Path("new.csv").write_text(mixed().to_csv(index=False, sep="#"))
    run("fit", "new.csv", "-o", "m.safetensors", "--delimiter", "#", *TINY_OPTIONS)
    run("score", "m.safetensors", "new.csv", "-o", "scores.csv", "--delimiter", "#")
    assert np.array_equal(read_predictions("scores.csv")["anomaly_score"], load("m.safetensors").anomaly_score(mixed()))


# calibrate -----------------------------------------------------------------------------------------------------------


def test_calibrate(model):
    rows = mixed(150, seed=1)
    result = run(
        "calibrate", model, save(rows), "-o", "new.safetensors", "--fpr", 0.1, "--threshold", "quantile", "--json"
    )
    before, after = load(model), load("new.safetensors")
    wanted = load(model).calibrate(rows, fpr=0.1, threshold="quantile")
    assert after.threshold_ == wanted.threshold_ != before.threshold_
    assert np.array_equal(after.anomaly_score(rows), before.anomaly_score(rows))
    summary = json.loads(result.stdout)
    assert summary == {
        "model": "new.safetensors", "calibrated_on": 150, "threshold_before": before.threshold_,
        "threshold": after.threshold_, "fpr": 0.1, "rule": "quantile", "parameters": {},
        "extrapolation": None, "labels": None, "group_thresholds": {},
    }  # fmt: skip


def test_calibrate_in_place_on_normal_rows_only(model):
    shutil.copy(model, "m.safetensors")
    table = labelled()
    run("calibrate", "m.safetensors", save(table), "-o", "m.safetensors", "--label", "anomaly", "--overwrite")
    wanted = load(model).calibrate(table[table["anomaly"] == 0].drop(columns="anomaly"))
    assert load("m.safetensors").threshold_ == wanted.threshold_


def test_calibrate_leaves_rows_out_that_cannot_be_scored(model):
    rows = mixed(100, seed=1).astype(object)
    rows.loc[3, :] = None
    rows.loc[4, "flow"] = np.inf
    result = run("calibrate", model, save(rows), "-o", "new.safetensors", "--json")
    assert json.loads(result.stdout)["calibrated_on"] == 98


def test_calibrate_says_when_it_is_given_training_rows(model):
    rows = pd.concat([mixed(100, seed=1), mixed().head(7)])
    assert (
        "7 of 107 rows equal rows that the model was trained on"
        in run("calibrate", model, save(rows), "-o", "new.safetensors").stderr
    )
    assert "equal rows" not in run("calibrate", model, save(mixed(100, seed=1)), "-o", "other.safetensors").stderr


def test_a_threshold_is_chosen_on_labels(model):
    table = labelled().astype(object)
    table.loc[3, list(mixed().columns)] = None
    options = ("--label", "anomaly", "--threshold", "f_beta", "--beta", 2)
    result = run("calibrate", model, save(table), "-o", "new.safetensors", *options, "--json")
    n_anomalies = int(table["anomaly"].drop(3).sum())
    rule, summary = load("new.safetensors").threshold_rule_, json.loads(result.stdout)
    assert (
        rule["labels"].items() >= {"n_anomalies": n_anomalies, "n_normal": 199 - n_anomalies, "data": "new.csv"}.items()
    )
    assert (summary["fpr"], summary["rule"], summary["parameters"]) == (None, "f_beta", {"beta": 2.0})
    assert summary["labels"] == rule["labels"]
    assert np.array_equal(load("new.safetensors").calibration_scores_, load(model).calibration_scores_)
    caught = f"it catches {rule['labels']['anomalies_flagged']} of {n_anomalies} anomalies and flags"
    for said in (caught, "normal rows of new.csv, which is no test result"):
        assert said in result.stderr
        assert said in run("inspect", "new.safetensors").stdout
    scores = scores_of("new.safetensors", table.drop(columns="anomaly"))
    assert set(scores["rule"].dropna()) == {"f_beta beta=2"}
    assert (scores["threshold"].dropna() == load("new.safetensors").threshold_).all()


def test_an_extrapolated_threshold_says_what_it_is(model):
    options = ("--threshold", "peaks_over_threshold", "--fpr", 0.005)
    result = run("calibrate", model, save(mixed(800, seed=1)), "-o", "new.safetensors", *options, "--json")
    assert "0.5 % of normal rows flagged, by extrapolation from 800 calibration rows (peaks over" in result.stderr
    assert "with 95 % confidence, and if their law holds on, the shape of the tail is" in result.stderr
    assert json.loads(result.stdout)["extrapolation"] == load("new.safetensors").threshold_rule_["extrapolation"]
    assert "extrapolated by" in run("inspect", "new.safetensors").stdout


# groups --------------------------------------------------------------------------------------------------------------


def machines(n=200, seed=0):
    """Rows as in ``mixed`` of two machines, with the machine of each."""
    return mixed(n, seed).assign(machine=np.where(np.arange(n) % 2, "007", "b"))


@pytest.fixture(scope="module")
def by_machine(tmp_path_factory):
    """Model file with a threshold for each machine."""
    path = tmp_path_factory.mktemp("groups")
    machines(400).to_csv(path / "normal.csv", index=False)
    result = run(
        "fit", path / "normal.csv", "-o", path / "m.safetensors", "--group", "machine", "--fpr", 0.1, *TINY_OPTIONS
    )
    assert "about 10 % of normal rows flagged on average in each of 2 groups of 'machine', by a" in result.stderr
    assert "in the weakest group, '" in result.stderr
    return path / "m.safetensors"


def test_a_model_by_group_is_that_of_python(by_machine):
    table = machines(400)
    wanted = VAEDetector(**TINY, fpr=0.1).fit(table.drop(columns="machine"), groups=table["machine"])
    assert load(by_machine).group_thresholds_ == wanted.group_thresholds_
    assert "machine" not in load(by_machine).feature_names_in_
    assert "2 of machine" in run("inspect", by_machine).stdout


def test_rows_are_judged_by_their_group(by_machine):
    table = machines(90, seed=1)
    table["flow"] += np.linspace(0, 3, 90)
    table.loc[80:, "machine"] = "new"
    table.loc[85:, "machine"] = None
    result = run("score", by_machine, save(table), "-o", "scores.csv", "--json")
    scores, detector = read_predictions("scores.csv"), load(by_machine)
    groups = table["machine"]
    assert np.array_equal(scores["p_value"], detector.p_value(table.drop(columns="machine"), groups))
    expected = groups.map(detector.group_thresholds_).fillna(detector.threshold_)
    assert np.array_equal(scores["threshold"], expected)
    assert ((scores["anomaly_score"] > expected) == (scores["is_anomaly"] == 1)).all()
    names = np.where(np.arange(90) < 80, "machine=" + groups.fillna("").astype(str), "all groups")
    flagged = scores["is_anomaly"] == 1
    assert flagged[:80].any()
    assert flagged[80:].any()
    assert scores["rule"][flagged].tolist() == [f"conformal fpr=0.1 {name}" for name in names[flagged]]
    assert "10 rows have no 'machine' that the model was calibrated on" in result.stderr
    assert json.loads(result.stdout)["without_group"] == 10
    assert json.loads(result.stdout)["ignored_columns"] == []


def test_calibrate_sets_groups_and_drops_them(by_machine):
    table = machines(120, seed=1)
    run("calibrate", by_machine, save(table), "-o", "new.safetensors", "--group", "machine")
    wanted = load(by_machine).calibrate(table.drop(columns="machine"), groups=table["machine"])
    assert load("new.safetensors").group_thresholds_ == wanted.group_thresholds_
    result = run("calibrate", "new.safetensors", "new.csv", "-o", "plain.safetensors")
    assert "Dropped the thresholds by 'machine': one threshold now holds for all rows." in result.stderr
    assert load("plain.safetensors").group_thresholds_ == {}


# report --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(model, tmp_path_factory):
    """Folder with a report, and the predictions of the same rows."""
    folder = tmp_path_factory.mktemp("report")
    labelled().to_csv(folder / "labelled.csv", index=False)
    result = run("report", model, folder / "labelled.csv", "--label", "anomaly", "-o", folder / "out", "--json")
    run("score", model, folder / "labelled.csv", "-o", folder / "scores.csv")
    return folder / "out", labelled()["anomaly"], read_predictions(folder / "scores.csv"), json.loads(result.stdout)


def test_report_writes_four_files(report):
    folder, *_ = report
    assert sorted(path.name for path in folder.iterdir()) == ["metrics.json", "pr.csv", "report.html", "roc.csv"]
    assert (folder / "report.html").read_text().startswith("<!")


def test_figures_agree_with_scikit_learn(report):
    folder, y, scores, _ = report
    figures = json.loads((folder / "metrics.json").read_text())
    s, flagged = scores["anomaly_score"], scores["is_anomaly"]
    wanted = {
        "roc_auc": metrics.roc_auc_score(y, s),
        "average_precision": metrics.average_precision_score(y, s),
        "recall": metrics.recall_score(y, flagged),
        "precision": metrics.precision_score(y, flagged),
        "f1": metrics.f1_score(y, flagged),
    }
    for name, value in wanted.items():
        assert figures[name]["value"] == pytest.approx(value, abs=1e-12), name
    tn, fp, fn, tp = metrics.confusion_matrix(y, flagged).ravel().tolist()
    assert figures["confusion"] == {"tn": tn, "fp": fp, "fn": fn, "tp": tp}
    assert figures["false_alarm_rate"]["value"] == pytest.approx(fp / (fp + tn))
    assert figures["threshold"] == scores["threshold"][0]


def test_curves_agree_with_their_definition(report):
    folder, y, scores, _ = report
    roc, pr, s = read_predictions(folder / "roc.csv"), read_predictions(folder / "pr.csv"), scores["anomaly_score"]
    above = s.to_numpy() >= roc["threshold"].to_numpy()[:, None]
    np.testing.assert_allclose(roc["tpr"], above[:, y == 1].mean(axis=1))
    np.testing.assert_allclose(roc["fpr"], above[:, y == 0].mean(axis=1))
    assert metrics.auc(roc["fpr"], roc["tpr"]) == pytest.approx(metrics.roc_auc_score(y, s))
    above = s.to_numpy() >= pr["threshold"].to_numpy()[:-1, None]
    np.testing.assert_allclose(pr["recall"][:-1], above[:, y == 1].mean(axis=1))
    np.testing.assert_allclose(pr["precision"][:-1], (above & (y == 1).to_numpy()).sum(axis=1) / above.sum(axis=1))
    area = -np.sum(np.diff(pr["recall"]) * pr["precision"].to_numpy()[:-1])
    assert area == pytest.approx(metrics.average_precision_score(y, s))


def test_report_prints_json(report):
    folder, _, _, printed = report
    assert printed == {"report": str(folder / "report.html"), **json.loads((folder / "metrics.json").read_text())}


def test_report_names_an_html_file(model):
    table = labelled()
    result = run("report", model, save(table), "--label", "anomaly", "-o", "pump.html", "--title", "Pump <7>", "-q")
    assert result.output == ""
    assert "Pump &lt;7&gt;" in Path("pump.html").read_text()
    assert Path("metrics.json").is_file()
    assert Path("roc.csv").is_file()


@pytest.mark.parametrize(("bound", "exit_code"), [("0.1", 0), ("0.999", 6)])
def test_min_auroc(model, bound, exit_code):
    table = labelled()
    result = run(
        "report", model, save(table), "--label", "anomaly", "-o", "out", "--min-auroc", bound, "-q", exit_code=exit_code
    )
    assert ("less than --min-auroc 0.999" in result.stderr) == (exit_code == 6)
    assert Path("out/report.html").is_file()


def test_report_leaves_rows_out_that_have_no_label_or_no_score(model):
    table = labelled().astype(object)
    table.loc[0, "anomaly"] = None
    table.loc[1, "flow"] = np.inf
    result = run("report", model, save(table), "--label", "anomaly", "-o", "out", "--json")
    assert json.loads(result.stdout)["n_rows"] == 198
    assert "Left out 2 rows without a label or a score." in result.stderr


def test_equal_reports_have_equal_bytes(model):
    table = save(labelled())
    for name in ("one", "two"):
        run("report", model, table, "--label", "anomaly", "-o", name)
    for name in ("report.html", "metrics.json", "roc.csv", "pr.csv"):
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes()


def test_features_with_a_semicolon_in_their_name(model):
    table = labelled().rename(columns={"flow": "flow; inlet", "pressure": "pressure; outlet"})
    run("fit", save(table), "-o", "m.safetensors", "--label", "anomaly", *TINY_OPTIONS)
    run("report", "m.safetensors", "new.csv", "--label", "anomaly", "-o", "out")
    assert "flow; inlet" in Path("out/report.html").read_text()


# inspect and sample --------------------------------------------------------------------------------------------------


def test_inspect(model):
    result = run("inspect", model)
    for line in (
        "score",
        "novelty",
        "conformal",
        "calibration rows",
        "real",
        "binary",
        "categorical",
        "idle",
        "torch",
    ):
        assert line in result.stdout, line
    assert result.stderr == ""


def test_inspect_prints_json(model):
    header = json.loads(run("inspect", model, "--json").stdout)
    assert header.keys() >= {
        "format_version", "params", "schema", "threshold", "training", "versions", "fingerprint", "checksum", "notes",
    }  # fmt: skip
    assert header["params"]["n_estimators"] == 2
    assert header["threshold"]["value"] == load(model).threshold_
    assert [column["name"] for column in header["schema"]] == list(mixed().columns)


def test_sample(model):
    result = run("sample", model, "-n", 40)
    assert result.stderr == ""
    Path("drawn.csv").write_text(result.stdout)
    drawn = pd.read_csv("drawn.csv")
    assert drawn.dtypes.to_dict() == mixed().dtypes.to_dict()
    assert len(drawn) == 40
    assert set(drawn["mode"]) <= {"idle", "run", "wash", "other"}
    assert drawn.equals(read_predictions("drawn.csv"))
    assert run("sample", model, "-n", 40).stdout == result.stdout
    assert run("sample", model, "-n", 40, "--seed", 1).stdout != result.stdout
    assert scores_of(model, drawn)["anomaly_score"].notna().all()


def test_sample_to_a_file(model):
    result = run("sample", model, "-n", 3, "-o", "drawn.parquet")
    assert "Wrote 3 rows to drawn.parquet." in result.stderr
    assert pd.read_parquet("drawn.parquet").dtypes["count"].kind == "i"


# demo ----------------------------------------------------------------------------------------------------------------


def test_demo(monkeypatch):
    fit = importlib.import_module("vae_anomaly.cli.fit").command
    for param in fit.params:
        if param.name in ("max_steps", "n_estimators"):
            monkeypatch.setattr(param, "default", {"max_steps": 30, "n_estimators": 2}[param.name])
    result = run("demo", "breast-cancer", "-o", "tour")
    folder = Path("tour/breast-cancer")
    assert sorted(path.name for path in folder.iterdir()) == [
        "metrics.json", "model.safetensors", "pr.csv", "report.html", "roc.csv", "scores.csv", "test.csv", "train.csv",
    ]  # fmt: skip
    assert "Wolberg" in result.stderr
    for verb in ("fit", "score", "report"):
        assert f"$ vae-anomaly {verb} " in result.stderr
    assert f"Open {folder / 'report.html'} in a browser." in result.stderr
    assert len(read_predictions(folder / "scores.csv")) == len(pd.read_csv(folder / "test.csv"))


# compare -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """Folder and printed JSON of a comparison on two tables, one of them of text and with holes."""
    folder = tmp_path_factory.mktemp("compare")
    table = labelled(120, 20)
    table[["anomaly", "flow", "pressure"]].to_csv(folder / "numbers.csv", index=False)
    table.loc[3, "flow"] = np.nan
    table.to_csv(folder / "mixed.csv", index=False)
    result = run(
        "compare", folder / "numbers.csv", folder / "mixed.csv", "--label", "anomaly", "-o", folder / "out", "--json",
        "--max-steps", 30,
    )  # fmt: skip
    return folder / "out", json.loads(result.stdout), result.stderr


def test_compare_writes_what_it_prints(comparison):
    folder, printed, told = comparison
    assert sorted(path.name for path in folder.iterdir()) == ["compare.csv", "compare.html", "compare.json"]
    assert json.loads((folder / "compare.json").read_text()) == printed
    table, page = pd.read_csv(folder / "compare.csv"), (folder / "compare.html").read_text()
    assert len(table) == 2 * (1 + len(BASELINES))
    for i, one in enumerate(printed["tables"]):
        assert [detector["name"] for detector in one["detectors"]] == ["vae", *BASELINES]
        assert [difference["name"] for difference in one["differences"]] == list(BASELINES)
        assert (one["facts"]["Rows trained on"], one["facts"]["Normal rows tested"]) == (50, 50)
        assert one["facts"]["Anomalies tested"] == 20
        assert one["verdict"] in told
        rows = table[table["data"] == one["data"]]
        for detector, difference in zip(one["detectors"][1:], one["differences"], strict=True):
            row = rows[rows["detector"] == detector["name"]].iloc[0]
            assert row["roc_auc"] == pytest.approx(detector["roc_auc"]["value"])
            assert row["roc_auc_difference_low"] == pytest.approx(difference["roc_auc"]["low"])
        assert f"{Path(one['data']).name}</h2>" in page
        assert i == 0 or "one_class_svm" in told
    assert "://" not in re.sub(r'xmlns="[^"]*"', "", page)


def test_compare_measures_what_python_measures(comparison):
    _, printed, _ = comparison
    table = pd.read_csv(printed["tables"][0]["data"])
    X, y = table.drop(columns="anomaly"), table["anomaly"].to_numpy()
    train, test = split_rows(y, 0)
    area = metrics.roc_auc_score(y[test], baseline_scores("knn", X.iloc[train], X.iloc[test]))
    assert printed["tables"][0]["detectors"][1]["roc_auc"]["value"] == pytest.approx(area)
    detector = VAEDetector(max_steps=30).fit(X.iloc[train].reset_index(drop=True))
    area = metrics.roc_auc_score(y[test], detector.anomaly_score(X.iloc[test]))
    assert printed["tables"][0]["detectors"][0]["roc_auc"]["value"] == pytest.approx(area)


def test_compare_with_chosen_baselines_and_fewer_rows():
    result = run(
        "compare", save(labelled(120, 20)), "--label", "anomaly", "--baseline", "knn", "--baseline", "lof",
        "--max-rows", 60, "--max-steps", 10, "--json", "-q",
    )  # fmt: skip
    assert result.stderr == ""
    (table,) = json.loads(result.stdout)["tables"]
    assert [detector["name"] for detector in table["detectors"]] == ["vae", "knn", "lof"]
    assert table["facts"]["Rows left out"] == 60
    assert sorted(path.name for path in Path().iterdir()) == ["new.csv"]


# Every verb ----------------------------------------------------------------------------------------------------------


def test_quiet_is_silent(model):
    normal, table = save(mixed(), "normal.csv"), save(labelled(), "labelled.csv")
    for arguments in (
        ["fit", normal, "-o", "m.safetensors", *TINY_OPTIONS],
        ["score", model, normal, "-o", "scores.csv"],
        ["calibrate", model, normal, "-o", "c.safetensors"],
        ["report", model, table, "--label", "anomaly", "-o", "out"],
        ["sample", model, "-o", "drawn.csv"],
        ["compare", table, "--label", "anomaly", "-o", "compared", "--baseline", "knn", "--max-steps", 10],
    ):
        assert run(*arguments, "--quiet").output == "", arguments[0]


def test_no_progress_bar_without_a_terminal():
    result = run("fit", save(mixed()), "-o", "m.safetensors", *TINY_OPTIONS)
    assert "Training" not in result.stderr
    assert "\r" not in result.stderr


def test_progress_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with common.progress(quiet=False) as on_check:
        on_check(0.5, 12.0, -3.25)
    assert "epoch 12, held-out ELBO -3.25 nats" in capsys.readouterr().err
    with common.progress(quiet=True) as on_check:
        assert on_check is None


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb(verb):
    result = run(verb, "--help")
    assert result.stdout.startswith("Usage: ")
    assert "Options:" in result.stdout


def test_help_lists_the_verbs_and_the_registries():
    listed = run("--help").stdout
    assert all(verb in listed for verb in VERBS)
    shown = run("fit", "--help").stdout.replace("\n", "").replace(" ", "")
    assert "|".join(SCORES) in shown


def test_version():
    assert run("--version").stdout == f"vae-anomaly, version {vae_anomaly.__version__}\n"


HEAVY = ("torch", "pandas", "sklearn", "matplotlib", "scipy", "pyarrow")
REGISTRIES = {
    "backbone": ("backbones", "BACKBONES"),
    "baseline": ("baselines", "BASELINES"),
    "label threshold": ("label_thresholds", "LABEL_THRESHOLDS"),
    "likelihood": ("likelihoods", "LIKELIHOODS"),
    "net": ("nets", "NETS"),
    "precision": ("products", "PRECISIONS"),
    "prior": ("priors", "PRIORS"),
    "score": ("scores", "SCORES"),
    "threshold": ("thresholds", "THRESHOLDS"),
}


def modules_after(arguments, *candidates, sentence=None):
    """Which of the candidates a command loads in a fresh interpreter; it works, or fails with a ``sentence``."""
    call = f"cli.main({arguments!r}, standalone_mode=False)"
    if sentence is not None:
        call = f"try: {call}\nexcept click.ClickException as error: print(error.format_message())"
    script = (
        f"import sys, click\nfrom vae_anomaly.cli import cli\n{call}\n"
        f"print(*[name for name in {candidates!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout
    assert sentence is None or sentence in done.stdout
    return done.stderr.split()


@pytest.mark.parametrize(("given", "found"), [
    ({}, "3000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None),
])  # fmt: skip
def test_threads_wait_awake_for_a_moment_unless_told_otherwise(given, found):
    """In the console script, that is, and before torch is loaded, which reads it then."""
    script = (
        "import os, sys\nfrom vae_anomaly.cli import main\nsys.argv = ['vae-anomaly', '--version']\n"
        "try: main()\nfinally: print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    )
    clean = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**clean, **given}, timeout=120
    )
    assert done.stdout.splitlines()[-1] == f"{found} False"


def test_only_the_console_script_looks_for_garbage_less_often():
    script = (
        "import gc, sys\nbefore = gc.get_threshold()\nfrom vae_anomaly.cli import main\n"
        "assert gc.get_threshold() == before\nsys.argv = ['vae-anomaly', '--version']\n"
        "try: main()\nfinally: print(before[0] < gc.get_threshold()[0])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "True", done.stderr


def test_help_loads_nothing_heavy():
    assert modules_after(["--help"], "numpy", *HEAVY) == []


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_loads_nothing_heavy(verb):
    assert modules_after([verb, "--help"], *HEAVY) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["fit", "normal.csv", "-o", "m.safetensors", "--prior", "elbow"], "Unknown prior 'elbow'."),
        (["fit", "nowhere.csv", "-o", "m.safetensors"], "nowhere.csv does not exist."),
        (["fit", "normal.csv", "-o", "m.safetensors", "--label", "elbow"], "normal.csv has no column 'elbow'."),
        (["fit", "pair.csv", "-o", "m.safetensors"], "pair.csv has more than one column named 'flow'"),
        (["score", "nowhere.safetensors", "normal.csv"], "Model file 'nowhere.safetensors' does not exist."),
        (["score", "normal.csv", "normal.csv"], "normal.csv is not a model file"),
        (["report", "MODEL", "nowhere.csv", "-o", "out"], "nowhere.csv does not exist."),
        (["calibrate", "MODEL", "nowhere.csv", "-o", "m.safetensors"], "nowhere.csv does not exist."),
        (["compare", "nowhere.csv", "--label", "anomaly"], "nowhere.csv does not exist."),
        (["sample", "nowhere.safetensors"], "Model file 'nowhere.safetensors' does not exist."),
    ],
)
def test_a_slip_is_answered_before_torch_is_loaded(model, arguments, sentence):
    """It takes seconds."""
    Path("pair.csv").write_text("flow,flow\n1,2\n", encoding="utf-8")
    mixed().to_csv("normal.csv", index=False)
    arguments = [str(model) if argument == "MODEL" else argument for argument in arguments]
    assert modules_after(arguments, "torch", "sklearn", sentence=sentence) == []


@pytest.mark.parametrize(("what", "module", "name"), [(what, *home) for what, home in REGISTRIES.items()])
def test_names_are_those_of_the_registries(what, module, name):
    assert NAMES[what] == tuple(getattr(importlib.import_module(f"vae_anomaly.{module}"), name))
    assert NAMES.keys() == REGISTRIES.keys()


def test_inspect_loads_no_torch(model):
    assert modules_after(["inspect", str(model)], "torch", "pandas", "sklearn") == []


# The console script --------------------------------------------------------------------------------------------------


def shell(*arguments, **options):
    return subprocess.run([SCRIPT, *map(str, arguments)], capture_output=True, timeout=300, **options)


@needs_script
def test_the_console_script_scores_as_python_does(model):
    rows = mixed(20, seed=1)
    done = shell("score", model, "-", input=rows.to_csv(index=False).encode())
    assert done.returncode == 0
    Path("scores.csv").write_bytes(done.stdout)
    assert np.array_equal(read_predictions("scores.csv")["anomaly_score"], load(model).anomaly_score(rows))
    assert b"Flagged" in done.stderr
    assert b"Training" not in done.stderr


@needs_script
def test_the_console_script_ends_with_the_exit_codes(model):
    done = shell("score", model, "nowhere.csv")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"", b"Error: nowhere.csv does not exist.\n")
    assert shell("score", "nowhere.safetensors", "nowhere.csv").returncode == 4
    assert shell("score", model).returncode == 2


@needs_script
def test_a_reader_that_leaves_early_is_no_error(model):
    # As in `vae-anomaly score ... | head -1`.
    save(pd.concat([mixed(2000, seed=1)] * 5))
    with subprocess.Popen(
        [SCRIPT, "score", str(model), "new.csv", "--top", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline().startswith(b"row,anomaly_score")
        process.stdout.close()
        errors = process.stderr.read().decode()
        process.wait(timeout=300)
    assert "Error" not in errors
    assert "Broken pipe" not in errors
    assert process.returncode == 0


def test_inspect_shows_no_control_characters(model):
    header, tensors = load_model(model)
    del header["checksum"], header["format_version"]
    header["notes"]["data"] = "\x1b]0;owned\x07\x9b31mnormal.csv"
    save_model("m.safetensors", header, tensors)
    shown = run("inspect", "m.safetensors").stdout
    assert "normal.csv" in shown
    assert not set(shown) & {"\x1b", "\x07", "\x9b"}
