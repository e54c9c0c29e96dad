import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from tables import TINY_OPTIONS, labelled, mixed, read_predictions, run

from vae_anomaly.scores import scores_for


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two model files of tiny detectors that differ by their seed."""
    folder = tmp_path_factory.mktemp("models")
    mixed().to_csv(folder / "normal.csv", index=False)
    for name, seed in (("pump", 0), ("other", 1)):
        run("fit", folder / "normal.csv", "-o", folder / f"{name}.safetensors", "--seed", seed, *TINY_OPTIONS)
    return folder / "pump.safetensors", folder / "other.safetensors"


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frame = labelled()
    kinds = np.where(np.arange(len(frame)) % 2, "leak", "jam")
    frame.assign(kind=np.where(frame["anomaly"] == 1, kinds, "none")).to_csv("labelled.csv", index=False)


def report(*arguments):
    run("report", *arguments, "-o", "out")
    return json.loads(Path("out/metrics.json").read_text())


LABELLED = ("labelled.csv", "--label", "anomaly", "--drop", "kind")


def test_all_scores_are_compared_with_the_models_own(models):
    compared = report(models[0], *LABELLED)["compared"]
    assert compared[0]["name"] == "novelty"
    assert compared[0]["p_value"] is None
    assert {one["name"] for one in compared} == set(scores_for(images=False))
    run("score", models[0], "labelled.csv", "--drop", "kind", "--drop", "anomaly", "-o", "s.csv", "--scores", "kl")
    labels = pd.read_csv("labelled.csv")["anomaly"]
    kl = next(one for one in compared if one["name"] == "kl")
    assert kl["roc_auc"]["value"] == pytest.approx(roc_auc_score(labels, read_predictions("s.csv")["kl"]), abs=1e-9)


def test_a_copy_of_a_model_ranks_alike(models):
    """There is no test to make of no difference, and no figure is made up for one."""
    Path("copy.safetensors").write_bytes(models[0].read_bytes())
    result = run("report", models[0], "copy.safetensors", *LABELLED, "-o", "out")
    assert "copy.safetensors and pump.safetensors rank each anomaly against each normal row alike." in result.stderr
    assert "nan" not in result.stderr


def test_scores_need_not_be_compared(models):
    assert "compared" not in report(models[0], *LABELLED, "--no-scores")


def test_scores_to_compare_need_one_model_and_labels(models):
    result = run("report", *models, *LABELLED, "-o", "out", "--compare-score", "kl", exit_code=2)
    assert "--compare-score compares the scores of one model, and several are named." in result.stderr
    unlabelled = ("labelled.csv", "--drop", "kind", "--drop", "anomaly")
    result = run("report", models[0], *unlabelled, "-o", "out", "--compare-score", "kl", exit_code=2)
    assert "--compare-score needs labels" in result.stderr


def test_models_are_compared_on_the_same_rows(models):
    compared = report(*models, *LABELLED)["compared"]
    assert [one["name"] for one in compared] == ["pump.safetensors", "other.safetensors"]
    alone = {}
    for model in models:
        run("report", model, *LABELLED, "-o", "alone", "--overwrite", "-q")
        alone[model.name] = json.loads(Path("alone/metrics.json").read_text())["roc_auc"]["value"]
    assert compared[1]["difference"]["value"] == pytest.approx(
        alone["other.safetensors"] - alone["pump.safetensors"], abs=1e-9
    )


def test_the_kind_that_is_caught_least_is_named(models):
    result = run("report", models[0], "labelled.csv", "--label", "anomaly", "--type", "kind", "-o", "out")
    types = json.loads(Path("out/metrics.json").read_text())["types"]
    assert {one["name"] for one in types} == {"jam", "leak"}
    assert f"Caught least: {types[0]['name']}" in result.stderr
    assert "Recall by type of anomaly" in Path("out/report.html").read_text()


def test_a_report_without_labels_shows_what_needs_none(models):
    metrics = report(models[0], "labelled.csv", "--drop", "kind", "--drop", "anomaly")
    run("score", models[0], "labelled.csv", "--drop", "kind", "--drop", "anomaly", "-o", "s.csv")
    assert metrics["n_flagged"] == read_predictions("s.csv")["is_anomaly"].sum()
    page = Path("out/report.html").read_text()
    assert "There are no labels" in page
    assert 'id="chart-p_values"' in page
    assert 'id="chart-roc"' not in page
    assert not Path("out/roc.csv").exists()


def test_charts_are_written_for_papers(models):
    for folder in ("plots", "again"):
        run("report", models[0], *LABELLED, "-o", folder + "-out", "--plots", folder, "-q")
    files = sorted(path.name for path in Path("plots").iterdir())
    assert {"roc.svg", "roc.png", "precision_recall.svg", "p_values.png", "latent.svg", "promise.svg"} <= set(files)
    for name in files:
        assert Path("plots", name).read_bytes() == Path("again", name).read_bytes()


def test_costs_and_the_partial_area_are_those_asked_for(models):
    metrics = report(models[0], *LABELLED, "--cost-miss", 20, "--cost-alarm", 0.5, "--max-fpr", 0.3)
    assert metrics["max_fpr"] == 0.3
    page = Path("out/report.html").read_text()
    assert 'id="cost-miss" min="0" step="any" value="20"' in page
    assert 'id="cost-alarm" min="0" step="any" value="0.5"' in page


def test_figures_on_rows_that_were_trained_on_are_no_test_result(models):
    mixed().assign(anomaly=0).to_csv("trained.csv", index=False)
    new = pd.read_csv("labelled.csv").drop(columns="kind")
    pd.concat([new, pd.read_csv("trained.csv").iloc[:7]]).to_csv("both.csv", index=False)
    result = run("report", models[0], "both.csv", "--label", "anomaly", "-o", "out", "--json")
    metrics = json.loads(result.stdout)
    assert metrics["is_test_result"] is False
    assert metrics["seen_rows"]["training"] == 7
    sentence = f"Not a test result: 7 of {len(new) + 7} rows are equal to rows that the model was trained on."
    assert sentence in result.stderr
    assert sentence in Path("out/report.html").read_text()
    assert report(models[0], *LABELLED, "--overwrite")["is_test_result"] is True


def test_curves_of_an_earlier_report_do_not_stay(models):
    report(models[0], *LABELLED)
    assert Path("out/roc.csv").exists()
    run("report", models[0], "labelled.csv", "-o", "out", "--overwrite")
    assert sorted(path.name for path in Path("out").iterdir()) == ["metrics.json", "report.html"]


@pytest.mark.parametrize("rule", ["youden", "f_beta", "cost", "recall_at_fpr"])
def test_a_threshold_chosen_on_these_labels_is_marked(models, rule):
    run("calibrate", models[0], *LABELLED, "--threshold", rule, "-o", "chosen.safetensors")
    run("report", "chosen.safetensors", *LABELLED, "-o", "out")
    page = Path("out/report.html").read_text()
    assert f"the threshold ({rule}) was chosen on these labels" in page
    assert "Chosen on labels of" in page
    assert json.loads(Path("out/metrics.json").read_text())["is_test_result"] is False
    labelled(seed=5).to_csv("others.csv", index=False)
    run("report", "chosen.safetensors", "others.csv", "--label", "anomaly", "-o", "out", "--overwrite")
    assert "was chosen on these labels" not in Path("out/report.html").read_text()
    assert json.loads(Path("out/metrics.json").read_text())["is_test_result"] is True


def test_groups_are_judged_by_their_own_thresholds():
    machines = np.where(np.arange(200) % 2, "east", "west")
    mixed().assign(machine=machines).to_csv("normal.csv", index=False)
    run("fit", "normal.csv", "--group", "machine", "-o", "grouped.safetensors", *TINY_OPTIONS)
    labelled().assign(machine=machines).to_csv("new.csv", index=False)
    metrics = report("grouped.safetensors", "new.csv", "--label", "anomaly")
    run("score", "grouped.safetensors", "new.csv", "--drop", "anomaly", "-o", "s.csv")
    flagged = read_predictions("s.csv")["is_anomaly"].to_numpy(dtype=int)
    y = pd.read_csv("new.csv")["anomaly"]
    assert metrics["confusion"]["tp"] == flagged[y == 1].sum()
    assert metrics["confusion"]["fp"] == flagged[y == 0].sum()
    page = Path("out/report.html").read_text()
    assert "Each group has a threshold of its own." in page
    assert 'id="points"' not in page
