"""What the command line says about input that it can't use: one sentence and an exit code, and no output is touched."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tables import TINY, TINY_OPTIONS, labelled, mixed, numbers, run

import vae_anomaly.cli
from vae_anomaly.detector import VAEDetector
from vae_anomaly.likelihoods import LIKELIHOODS
from vae_anomaly.persistence import load_model, save_model
from vae_anomaly.priors import PRIORS
from vae_anomaly.scores import SCORES
from vae_anomaly.thresholds import THRESHOLDS

USAGE, DATA, MODEL = 2, 3, 4


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "pump.safetensors"
    VAEDetector(**TINY).fit(mixed()).save(path)
    return path


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mixed().to_csv("normal.csv", index=False)
    labelled().to_csv("labelled.csv", index=False)


def save(frame, name="new.csv"):
    frame.to_csv(name, index=False)
    return name


def write(content, name="new.csv"):
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


def fails(exit_code, sentence, *arguments):
    """Run a command that must fail with a sentence; nothing but it goes to standard error, and nothing elsewhere."""
    before = sorted(Path().rglob("*"))
    result = run(*arguments, exit_code=exit_code)
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr
    assert "Unexpected" not in result.stderr
    assert result.stdout == ""
    assert sorted(Path().rglob("*")) == before
    return result


def fit_fails(exit_code, sentence, *options, data="new.csv"):
    return fails(exit_code, sentence, "fit", data, "-o", "m.safetensors", *TINY_OPTIONS, *options)


# Tables that can't be read -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "new.csv is empty."),
        (b"flow,pressure\n", "new.csv has a header and no rows."),
        (b"flow,pressure\n1,2\n\xff\xfe,4\n", "new.csv, line 3 is not UTF-8 text"),
        (b"flow,flow,pressure\n1,2,3\n", "new.csv has more than one column named 'flow'"),
        (b"flow,pressure\n1,2\n1,2,3\n", "new.csv, row 2: expected 2 cells, found 3"),
        (b"1.5,2\n3,4\n", "new.csv has no header"),
        (b'flow,note\n1,"a\n2,b\n', "a quoted cell does not end"),
        (b"\x00\x01\x02\x03" * 50, "new.csv"),
    ],
    ids=["empty", "header only", "not UTF-8", "duplicates", "ragged", "no header", "open quote", "binary"],
)
@pytest.mark.parametrize("verb", ["fit", "score", "calibrate", "report", "compare"])
def test_tables_that_cannot_be_read(model, verb, content, sentence):
    write(content)
    options = {
        "fit": ["new.csv", "-o", "out.safetensors"],
        "score": [model, "new.csv", "-o", "out.csv"],
        "calibrate": [model, "new.csv", "-o", "out.safetensors"],
        "report": [model, "new.csv", "-o", "out", "--label", "anomaly"],
        "compare": ["new.csv", "-o", "out", "--label", "anomaly"],
    }[verb]
    fails(DATA, sentence, verb, *options)


def test_parquet_that_is_none():
    fit_fails(DATA, "new.parquet is damaged or not a Parquet file", data=write("flow,pressure\n1,2\n", "new.parquet"))


def test_a_missing_file_and_an_unknown_suffix(model):
    fit_fails(DATA, "nowhere.csv does not exist.", data="nowhere.csv")
    fit_fails(DATA, "the suffix '.xlsx' is unknown. Known suffixes are .csv", data=write("x", "new.xlsx"))
    fails(DATA, "nowhere.csv does not exist.", "score", model, "nowhere.csv")


# Tables that can't be learned from -----------------------------------------------------------------------------------


def test_no_numeric_column():
    save(pd.DataFrame({"note": [f"note {i}" for i in range(200)], "text": [f"text {i}" for i in range(200)]}))
    fit_fails(DATA, "Error: new.csv: No numeric column, and no text column with repeated values")


def test_a_delimiter_that_leaves_one_column():
    save(mixed().drop(columns=["valve", "mode", "on", "count"]))
    sentence = "Its only column is 'flow,pressure': name another delimiter with --delimiter, or leave that out."
    fit_fails(DATA, sentence, "--delimiter", ";")


def test_all_columns_constant():
    save(pd.DataFrame({"a": [1.0] * 100, "b": [2] * 100}))
    fit_fails(DATA, "No column has two different values in the training rows")


@pytest.mark.parametrize(
    ("column", "remark"),
    [
        (np.nan, "Column 'odd' has no value in the training rows"),
        (7.0, "Column 'odd' has one and the same value in all training rows"),
        ("x", "Column 'odd' has one and the same value in all training rows"),
        ([f"note {i}" for i in range(200)], "Column 'odd' has text that hardly repeats"),
    ],
    ids=["all missing", "constant", "constant text", "free text"],
)
def test_columns_that_say_nothing_get_a_remark(column, remark):
    result = run("fit", save(mixed().assign(odd=column)), "-o", "m.safetensors", *TINY_OPTIONS)
    assert remark in result.stderr
    run("score", "m.safetensors", "new.csv", "-o", "scores.csv")
    assert pd.read_csv("scores.csv")["anomaly_score"].notna().all()


@pytest.mark.parametrize("value", ["inf", "-inf", "Infinity", "1e999"])
def test_infinite_values_name_the_cell(value):
    rows = mixed().astype(object)
    rows.loc[16, "flow"] = value
    save(rows)
    fit_fails(DATA, f"new.csv, row 17, column 'flow': {float(value):g} is not finite. Leave the cell empty")


def test_text_among_numbers_names_the_cell():
    rows = mixed().astype(object)
    rows.loc[16, "flow"] = "n/k"
    save(rows)
    fit_fails(DATA, "new.csv, row 17, column 'flow': 'n/k' is not a number")


def test_rows_are_named_by_their_place_in_the_file():
    table = labelled().astype(object)
    row = int(np.flatnonzero(table["anomaly"] == 0)[-1])
    table.loc[row, "flow"] = np.inf
    save(table)
    fit_fails(DATA, f"new.csv, row {row + 1}, column 'flow': inf is not finite", "--label", "anomaly")


def test_cells_of_a_folder_are_named_by_their_file():
    Path("parts").mkdir()
    rows = mixed().astype(object)
    rows.loc[150, "flow"] = np.inf
    save(rows.iloc[:100], "parts/a.csv")
    save(rows.iloc[100:], "parts/b.csv")
    fit_fails(DATA, "parts/b.csv, row 51, column 'flow': inf is not finite", data="parts")


@pytest.mark.parametrize(("rows", "fpr", "needed"), [(12, 0.05, 19), (200, 0.001, 999), (200, 0.0001, 9999)])
def test_fewer_rows_than_calibration_needs(rows, fpr, needed):
    save(mixed(rows))
    sentence = (
        f"new.csv: fpr={fpr} needs at least {needed} calibration rows, and these {rows} rows can't give them. Fit on"
    )
    result = fit_fails(DATA, sentence, "--fpr", fpr)
    assert "or raise --fpr" in result.stderr
    assert "calibrate()" not in result.stderr


@pytest.mark.parametrize("n_rows", [1, 2])
def test_next_to_no_rows(n_rows):
    save(mixed(n_rows))
    fit_fails(DATA, "new.csv")


def test_text_for_a_likelihood_of_numbers():
    fit_fails(DATA, "Column 'valve' holds text", "--likelihood", "gaussian", data="normal.csv")


# Labels --------------------------------------------------------------------------------------------------------------


def test_no_row_is_labelled_normal():
    save(labelled().assign(anomaly=1))
    result = fit_fails(DATA, "new.csv", "--label", "anomaly")
    assert "normal" in result.stderr.partition("Error:")[2]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--label", "labl"], "new.csv has no column 'labl'. Its columns are"),
        (["--label", "valve"], "say which of them is normal with --normal-value"),
        (["--label", "valve", "--normal-value", "ajar"], "no label is 'ajar', it holds 'open', 'shut'"),
        (["--id", "nope"], "new.csv has no column 'nope'"),
        (["--drop", "nope"], "new.csv has no column 'nope'"),
        (["--categorical", "nope"], "new.csv has no column 'nope'"),
    ],
)
def test_columns_that_are_not_there(options, sentence):
    save(mixed())
    fit_fails(DATA, sentence, *options)


@pytest.mark.parametrize(("label", "kind"), [(0, "normal"), (1, "anomalies")])
def test_report_with_one_class(model, label, kind):
    save(labelled().assign(anomaly=label))
    sentence = f"ROC-AUC needs normal rows and anomalies; all 200 rows are labelled {kind}"
    fails(DATA, sentence, "report", model, "new.csv", "--label", "anomaly", "-o", "out")


@pytest.mark.parametrize("option", [("--type", "mode"), ("--min-auroc", 0.9)])
def test_what_needs_labels_is_refused_without_them(model, option):
    sentence = f"{option[0]} needs labels: name the column that says which rows are normal with --label"
    fails(USAGE, sentence, "report", model, "labelled.csv", *option, "-o", "out")


def test_report_of_a_kind_that_is_not_there(model):
    given = ("report", model, "labelled.csv", "--label", "anomaly", "--type", "kind", "-o", "out")
    fails(DATA, "labelled.csv has no column 'kind'", *given)


def test_report_of_the_same_model_twice(model):
    fails(USAGE, "The same model is named twice", "report", model, model, "labelled.csv", "-o", "out")


def test_report_on_rows_without_any_value(model):
    Path("empty.csv").write_text("flow,pressure,count,valve,mode,on\n,,,,,\n")
    fails(DATA, "empty.csv has no row that can be scored", "report", model, "empty.csv", "-o", "out")


def test_charts_are_not_replaced_unasked(model):
    Path("plots").mkdir()
    Path("plots/roc.svg").write_text("mine")
    fails(USAGE, "there are charts already", "report", model, "labelled.csv", "-o", "out", "--plots", "plots")
    assert Path("plots/roc.svg").read_text() == "mine"


COMPARE = ("compare", "new.csv", "--label", "anomaly", "--max-steps", 10, "-o", "out")


def test_compare_without_labels():
    fails(USAGE, "name the column that says which rows are normal with --label", "compare", "labelled.csv")


@pytest.mark.parametrize(
    ("label", "sentence"),
    [(0, "new.csv: A comparison needs labelled anomalies"), (1, "at least 4 normal rows, half of them to train on")],
)
def test_compare_with_one_class(label, sentence):
    save(labelled().assign(anomaly=label))
    fails(DATA, sentence, *COMPARE)


def test_compare_names_the_cell_that_cannot_be_used():
    """Rows are named by their place in the file, wherever the shuffle has put them."""
    rows = labelled()
    place = int(rows.index[rows["anomaly"] == 1][0])
    rows.loc[place, "flow"] = np.inf
    save(rows)
    fails(DATA, f"new.csv, row {place + 1}, column 'flow'", *COMPARE)


def test_compare_finds_a_bad_table_before_it_fits_a_good_one(monkeypatch):
    monkeypatch.setattr(VAEDetector, "fit", None)
    save(labelled().assign(anomaly=0))
    fails(DATA, "new.csv: A comparison needs labelled anomalies", "compare", "labelled.csv", *COMPARE[1:])


def test_compare_with_an_unknown_baseline():
    fails(USAGE, "Unknown baseline 'nearest'. Choose from 'gaussian_mixture'", *COMPARE, "--baseline", "nearest")


@pytest.mark.parametrize("name", ["compare.html", "compare.json", "compare.csv"])
def test_no_file_of_an_existing_comparison_is_replaced_without_overwrite(name):
    save(labelled())
    Path("out").mkdir()
    Path("out", name).write_text("mine")
    fails(USAGE, f"out/{name}: the file exists. Add --overwrite", *COMPARE)
    assert Path("out", name).read_text() == "mine"


def test_compare_needs_a_folder():
    save(labelled())
    fails(USAGE, "-o new.csv: name a folder.", *COMPARE[:-1], "new.csv")
    fails(USAGE, "the folder 'nowhere' does not exist", *COMPARE[:-1], "nowhere/out")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["disk", "Ctrl-C"])
def test_no_file_of_a_comparison_is_touched_when_the_run_fails_midway(monkeypatch, error):
    def failing(*args, **kwargs):
        raise error

    save(labelled())
    Path("out").mkdir()
    for name in ("compare.html", "compare.json", "compare.csv"):
        Path("out", name).write_text("mine")
    monkeypatch.setattr(pd.DataFrame, "to_csv", failing)
    run(*COMPARE, "--baseline", "knn", "--overwrite", exit_code=1)
    assert {path.name: path.read_text() for path in Path("out").iterdir()} == dict.fromkeys(
        ("compare.html", "compare.json", "compare.csv"), "mine"
    )


# Tables that do not fit the model ------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["score", "calibrate", "report"])
def test_a_missing_column_is_named(model, verb):
    save(labelled().rename(columns={"pressure": "presure"}))
    label = [] if verb == "score" else ["--label", "anomaly"]
    output = {"score": "out.csv", "calibrate": "out.safetensors", "report": "out"}[verb]
    result = fails(DATA, "new.csv has no column 'pressure'", verb, model, "new.csv", *label, "-o", output)
    assert "'presure'" in result.stderr


@pytest.mark.parametrize("verb", ["score", "calibrate", "report"])
def test_text_where_a_number_was_learned_names_the_cell(model, verb):
    table = labelled().astype(object)
    row = int(np.flatnonzero(table["anomaly"] == 0)[30])
    table.loc[row, "pressure"] = "abc"
    # Rows before it that are left out must not shift its number.
    table.loc[0, [name for name in table if name != "anomaly"]] = None
    table.loc[1, "flow"] = np.inf
    save(table)
    label = [] if verb == "score" else ["--label", "anomaly"]
    output = {"score": "out.csv", "calibrate": "out.safetensors", "report": "out"}[verb]
    sentence = f"new.csv, row {row + 1}, column 'pressure': 'abc' is not a number"
    fails(DATA, sentence, verb, model, "new.csv", *label, "-o", output)


def test_text_where_an_array_had_numbers_names_the_cell():
    VAEDetector(**TINY).fit(numbers()).save("array.safetensors")
    rows = pd.DataFrame(numbers(), columns=list("abcd")).astype(object)
    rows.loc[4, "c"] = "abc"
    fails(DATA, "new.csv, row 5, column", "score", "array.safetensors", save(rows))


def test_fewer_rows_than_a_new_threshold_needs(model):
    save(mixed(10))
    sentence = "new.csv: fpr=0.05 needs at least 19 calibration samples, got 10"
    fails(DATA, sentence, "calibrate", model, "new.csv", "-o", "out.safetensors")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--threshold", "youden"], "--threshold youden needs --label, the column that says which rows are anomalies"),
        (
            ["--threshold", "youden", "--label", "y", "--fpr", "0.1"],
            "--fpr does not go with --threshold youden, but with",
        ),
        (
            ["--threshold", "f_beta", "--label", "y", "--cost-miss", "2"],
            "--cost-miss does not go with --threshold f_beta",
        ),
        (
            ["--threshold", "conformal", "--beta", "2"],
            "--beta does not go with --threshold conformal, but with f_beta.",
        ),
        (["--beta", "2"], "--beta does not go with --threshold (the model has its own), but with f_beta."),
        (["--threshold", "cost", "--label", "y", "--cost-alarm", "0"], "--cost-alarm"),
    ],
)
def test_options_that_do_not_fit_the_rule(model, options, sentence):
    fails(USAGE, sentence, "calibrate", model, save(labelled()), "-o", "out.safetensors", *options)


def test_groups_that_cannot_be_used(model):
    table = mixed(100).assign(machine=["a"] * 96 + ["b"] * 4)
    sentence = "needs at least 19. Give more normal rows of it"
    fit_fails(DATA, sentence, "--group", "machine", data=save(table))
    fit_fails(DATA, "new.csv has no column 'machin'", "--group", "machin", data="new.csv")
    arguments = ["calibrate", model, "new.csv", "-o", "out.safetensors", "--group", "machine"]
    fails(DATA, "new.csv: Group 'b' of 'machine' has 4 calibration rows", *arguments)
    options = ["--threshold", "youden", "--label", "on"]
    fails(USAGE, "--group does not go with --threshold youden, which is one for all rows", *arguments, *options)


def test_a_model_by_group_needs_its_column():
    save(mixed().assign(machine=["a", "b"] * 100))
    run("fit", "new.csv", "-o", "m.safetensors", "--group", "machine", "--fpr", "0.1", *TINY_OPTIONS)
    fails(DATA, "new.csv has no column 'machine'", "score", "m.safetensors", save(mixed()))


def test_a_threshold_on_labels_of_one_class(model):
    options = ["--threshold", "youden", "--label", "y", "-o", "out.safetensors"]
    sentence = "new.csv: A threshold chosen on labels needs anomalies and normal rows, and there are no anomalies"
    fails(DATA, sentence, "calibrate", model, save(mixed().assign(y=0)), *options)


def test_a_model_with_a_threshold_on_labels_needs_a_rule_to_calibrate(model):
    run("calibrate", model, save(labelled()), "-o", "m.safetensors", "--threshold", "youden", "--label", "anomaly")
    sentence = (
        "new.csv: The threshold was chosen on labels, by 'youden'. Name a rule for normal data, such as 'conformal'"
    )
    fails(DATA, sentence, "calibrate", "m.safetensors", save(mixed()), "-o", "out.safetensors")


# Options -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fpr", ["0", "1", "-0.1", "1.5", "nan", "inf", "five", ""])
@pytest.mark.parametrize("verb", ["fit", "calibrate", "demo"])
def test_fpr_outside_0_and_1_or_no_number(model, verb, fpr):
    before = {
        "fit": ["normal.csv", "-o", "m.safetensors"],
        "calibrate": [model, "normal.csv", "-o", "out.safetensors"],
        "demo": ["breast-cancer", "-o", "tour"],
    }[verb]
    fails(USAGE, f"--fpr {fpr}: must be a number between 0 and 1, both excluded", verb, *before, "--fpr", fpr)


@pytest.mark.parametrize(
    ("option", "what", "registry"),
    [
        ("--score", "score", ["auto", *SCORES]),
        ("--likelihood", "likelihood", ["auto", *LIKELIHOODS]),
        ("--prior", "prior", PRIORS),
        ("--threshold", "threshold", THRESHOLDS),
    ],
)
def test_unknown_names_list_the_known(option, what, registry):
    known = ", ".join(map(repr, sorted(registry)))
    fit_fails(USAGE, f"Unknown {what} 'elbow'. Choose from {known}.", option, "elbow", data="normal.csv")


def test_unknown_names_of_other_verbs(model):
    fails(
        USAGE,
        "Unknown score 'elbow'. Choose from 'input_complexity'",
        "score",
        model,
        "normal.csv",
        "--scores",
        "elbow",
    )
    arguments = ["calibrate", model, "normal.csv", "-o", "out.safetensors", "--threshold", "elbow"]
    fails(USAGE, "Unknown threshold 'elbow'. Choose from 'conformal'", *arguments)
    fails(USAGE, "Unknown sample 'elbow'. Choose from 'breast-cancer', 'digits'", "demo", "elbow", "-o", "tour")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--hidden", "0"], "--hidden 0: write positive widths with commas"),
        (["--hidden", "a,b"], "--hidden a,b: write positive widths with commas"),
        (["--max-steps", "0"], "--max-steps"),
        (["--estimators", "-1"], "--estimators"),
        (["--latent-dim", "x"], "--latent-dim"),
        (["--learning-rate", "0"], "--learning-rate"),
        (["--beta", "-1"], "--beta"),
        (["--beta", "nan"], "--beta"),
        (["--seed", "-1"], "--seed"),
        (["--normal-value", "open"], "--normal-value needs --label"),
        (["--delimiter", "::"], "--delimiter ::: must be one character"),
        (["--device", "abacus"], "--device abacus: this machine has no such device. Use auto or cpu."),
        (["--device", "cuda:99"], "--device cuda:99: this machine has no such device. Use auto or cpu."),
        (
            ["--device", "mps"],
            "--device mps: Apple's MPS has no double precision, in which scores are summed. Use auto or cpu.",
        ),
        (["--precision", "float16"], "Unknown precision 'float16'"),
        (["--device", "meta"], "--device meta: this machine has no such device. Use auto or cpu."),
        (["--nonsense"], "--nonsense"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_out_of_range(options, sentence):
    fit_fails(USAGE, sentence, *options, data="normal.csv")


@pytest.mark.parametrize("options", [("--net", "conv"), ("--backbone", "gabor"), ("--weights", "x"), ("--flip", "h")])
def test_options_of_images_for_a_table(options):
    option = "--net conv" if options[0] == "--net" else options[0]
    fit_fails(USAGE, f"{option} is for images, and normal.csv holds none.", *options, data="normal.csv")


def test_bfloat16_on_a_processor_without_it(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    sentence = "--precision bfloat16: this processor has no instructions for bfloat16 (AMX or AVX512-BF16), and would"
    fit_fails(USAGE, sentence, "--precision", "bfloat16", "--device", "cpu", data="normal.csv")


def test_missing_arguments_and_verbs(model):
    fails(USAGE, "Missing argument 'DATA'", "fit")
    fails(USAGE, "Missing option '-o'", "fit", "normal.csv")
    fails(USAGE, "Missing argument 'DATA'", "score", model)
    fails(USAGE, "No such command 'train'", "train")


# Outputs -------------------------------------------------------------------------------------------------------------


def commands(model, folder):
    """Each verb that writes, and where it would write in a folder."""
    return {
        "fit": (["normal.csv", *TINY_OPTIONS], f"{folder}/m.safetensors"),
        "score": ([model, "normal.csv"], f"{folder}/scores.csv"),
        "calibrate": ([model, "normal.csv"], f"{folder}/c.safetensors"),
        "report": ([model, "labelled.csv", "--label", "anomaly"], f"{folder}/report.html"),
        "sample": ([model], f"{folder}/drawn.csv"),
    }


WRITING = ["fit", "score", "calibrate", "report", "sample"]


@pytest.mark.parametrize("verb", WRITING)
def test_the_folder_of_the_output_does_not_exist(model, verb):
    arguments, output = commands(model, "nowhere")[verb]
    fails(USAGE, f"-o {output}: the folder 'nowhere' does not exist. Create it first.", verb, *arguments, "-o", output)


def test_the_folder_above_a_report_is_looked_for_as_it_is_spelt(model):
    """Nowhere and back leads here, but can't be made."""
    arguments = ["report", model, "labelled.csv", "--label", "anomaly", "-o", "nowhere/../out"]
    fails(USAGE, "-o nowhere/../out: the folder 'nowhere/..' does not exist. Create it first.", *arguments)


def test_the_folder_above_a_report_or_demo_does_not_exist(model):
    arguments = ["report", model, "labelled.csv", "--label", "anomaly", "-o", "nowhere/out"]
    fails(USAGE, "the folder 'nowhere' does not exist", *arguments)
    fails(USAGE, "the folder 'nowhere' does not exist", "demo", "digits", "-o", "nowhere/out")


@pytest.mark.parametrize("file", ["tour", "tour/digits"])
def test_the_folder_of_a_demo_is_a_file(file):
    Path(file).parent.mkdir(exist_ok=True)
    write("mine", file)
    fails(USAGE, f"-o tour: {file} is a file; name a folder.", "demo", "digits", "-o", "tour")


@pytest.mark.parametrize("verb", WRITING)
def test_an_existing_output_is_kept_without_overwrite(model, verb):
    Path("out").mkdir()
    arguments, output = commands(model, "out")[verb]
    Path(output).write_text("mine")
    fails(USAGE, f"-o {output}: the file exists. Add --overwrite", verb, *arguments, "-o", output)
    assert Path(output).read_text() == "mine"
    run(verb, *arguments, "-o", output, "--overwrite")
    assert Path(output).read_bytes() != b"mine"


@pytest.mark.parametrize("name", ["report.html", "metrics.json", "roc.csv", "pr.csv"])
def test_no_file_of_an_existing_report_is_replaced_without_overwrite(model, name):
    Path("out").mkdir()
    Path("out", name).write_text("mine")
    arguments = ["report", model, "labelled.csv", "--label", "anomaly", "-o", "out"]
    fails(USAGE, f"out/{name}: the file exists. Add --overwrite", *arguments)
    assert Path("out", name).read_text() == "mine"


@pytest.mark.parametrize("verb", ["fit", "score", "calibrate", "sample"])
def test_the_output_is_a_folder(model, verb):
    Path("out").mkdir()
    arguments, _ = commands(model, "out")[verb]
    fails(USAGE, "-o out: this is a folder; name a file in it.", verb, *arguments, "-o", "out")


@pytest.mark.parametrize("spelling", ["new.csv", "./new.csv", "{}/new.csv", "link.csv"])
@pytest.mark.parametrize("verb", ["fit", "score", "calibrate", "sample"])
def test_an_output_that_is_read_is_refused(model, verb, spelling):
    data, output = save(mixed()), spelling.format(Path().absolute())
    Path("link.csv").symlink_to(data)
    Path("m.csv").write_bytes(model.read_bytes())
    reads = {"fit": [data, *TINY_OPTIONS], "score": [model, data], "calibrate": [model, data], "sample": ["m.csv"]}
    output = output.replace("new", "m").replace("link", "m") if verb == "sample" else output
    sentence = f"-o {output}: this would replace {'m.csv' if verb == 'sample' else data}, which is read."
    fails(USAGE, sentence, verb, *reads[verb], "-o", output, "--overwrite")


def test_a_model_is_replaced_by_its_calibration_alone(model):
    write(model.read_bytes(), "m.safetensors")
    run("calibrate", "m.safetensors", "normal.csv", "-o", "m.safetensors", "--overwrite")
    write(model.read_bytes(), "m.csv")
    fails(USAGE, "this would replace m.csv", "score", "m.csv", "normal.csv", "-o", "m.csv", "--overwrite")


@pytest.mark.parametrize(
    ("name", "verb", "reads"),
    [
        ("roc.csv", "report", ["m.safetensors", "out/roc.csv"]),
        ("metrics.json", "report", ["out/metrics.json", "labelled.csv"]),
        ("compare.csv", "compare", ["out/compare.csv"]),
    ],
)
def test_a_report_that_would_replace_what_it_reads_is_refused(model, name, verb, reads):
    Path("out").mkdir()
    write(model.read_bytes(), "m.safetensors")
    write(model.read_bytes(), "out/metrics.json")
    for file in ("out/roc.csv", "out/compare.csv"):
        save(labelled(), file)
    sentence = f"-o out/{name}: this would replace out/{name}, which is read."
    fails(USAGE, sentence, verb, *reads, "--label", "anomaly", "-o", "out", "--overwrite")


def test_an_output_among_the_tables_of_a_folder_is_refused(model):
    Path("parts").mkdir()
    mixed().to_csv("parts/a.csv", index=False)
    sentence = "this would lie among the files of parts, which are read. Name a file elsewhere."
    for output in ("parts/a.csv", "parts/b.csv"):
        fails(USAGE, sentence, "score", model, "parts", "-o", output, "--overwrite")
    fails(USAGE, sentence, "fit", "parts", *TINY_OPTIONS, "-o", "parts/../parts/a.csv", "--overwrite")
    # A model is not read as a table.
    run("fit", "parts", *TINY_OPTIONS, "-o", "parts/m.safetensors")


def test_an_output_of_unknown_format_is_refused_before_any_work():
    fails(
        USAGE,
        "the suffix '.txt' is unknown. Known suffixes are .csv",
        "score",
        "no.safetensors",
        "no.csv",
        "-o",
        "x.txt",
    )


def test_a_model_cannot_go_to_standard_output(model):
    for arguments in (["fit", "normal.csv", *TINY_OPTIONS], ["calibrate", model, "normal.csv"]):
        fails(USAGE, "-o -: a model can't be written to standard output", *arguments, "-o", "-")


def test_predictions_and_json_cannot_both_go_to_standard_output(model):
    fails(USAGE, "name a file with -o", "score", model, "normal.csv", "--json")


@pytest.mark.parametrize("verb", ["fit", "score", "calibrate", "report", "sample"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["disk", "Ctrl-C"])
def test_outputs_are_untouched_when_a_run_fails_midway(model, monkeypatch, verb, error):
    def failing(*args, **kwargs):
        raise error

    arguments, output = commands(model, "out")[verb]
    Path("out").mkdir()
    for name in ("metrics.json", "roc.csv", "pr.csv", Path(output).name):
        Path("out", name).write_text("mine")
    targets = {
        "fit": "vae_anomaly.persistence.save_file",
        "score": "vae_anomaly.partial.Partial.append",
        "calibrate": "vae_anomaly.persistence.save_file",
        "report": "vae_anomaly.metrics.pr_table",
        "sample": "vae_anomaly.data.writers.write_table",
    }
    monkeypatch.setattr(targets[verb], failing)
    result = run(verb, *arguments, "-o", output, "--overwrite", exit_code=1)
    if isinstance(error, OSError):
        assert "No space left on device" in result.stderr
    assert {path.name for path in Path("out").iterdir()} == {"metrics.json", "roc.csv", "pr.csv", Path(output).name}
    assert {path.read_text() for path in Path("out").iterdir()} == {"mine"}


# Model files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["score", "calibrate", "report", "inspect", "sample"])
def test_model_files_that_cannot_be_used(model, verb):
    rest = {"score": ["normal.csv"], "calibrate": ["normal.csv", "-o", "c.safetensors"], "inspect": [], "sample": []}
    rest["report"] = ["labelled.csv", "--label", "anomaly", "-o", "out"]
    fails(MODEL, "Model file 'no.safetensors' does not exist.", verb, "no.safetensors", *rest[verb])
    content = bytearray(model.read_bytes())
    for name, damaged in {
        "cut.safetensors": content[:5000],
        "flipped.safetensors": content[:-1] + bytes([content[-1] ^ 1]),
        "empty.safetensors": b"",
        "text.safetensors": b"row,anomaly_score\n",
    }.items():
        write(bytes(damaged), name)
        sentence = "its checksum does not match" if name.startswith("flipped") else "is not a model file"
        fails(MODEL, f"{name} ", verb, name, *rest[verb])
        fails(MODEL, sentence, verb, name, *rest[verb])


@pytest.mark.parametrize("verb", ["score", "inspect", "sample"])
@pytest.mark.parametrize("part", ["schema", "params", "threshold", "training", "notes", "groups", "score"])
def test_a_model_file_without_a_part_of_its_header(model, verb, part):
    header, tensors = load_model(model)
    kept = {key: value for key, value in header.items() if key not in ("checksum", "format_version", part)}
    save_model("m.safetensors", kept, tensors)
    fails(MODEL, "m.safetensors", verb, "m.safetensors", *(["normal.csv"] if verb == "score" else []))


# Interrupts and surprises --------------------------------------------------------------------------------------------


def run_main(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["vae-anomaly", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        vae_anomaly.cli.main()
    return ended.value.code


def test_an_interrupt_ends_with_130(monkeypatch, capsys):
    def interrupted(self, *args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(VAEDetector, "fit", interrupted)
    write("mine", "m.safetensors")
    assert run_main(monkeypatch, "fit", "normal.csv", "-o", "m.safetensors", "--overwrite", "-q") == 130
    assert "Interrupted" in capsys.readouterr().err
    assert Path("m.safetensors").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        (["--version"], 0),
        (["fit"], 2),
        (["fit", "nowhere.csv", "-o", "m.safetensors"], 3),
        (["inspect", "no.safetensors"], 4),
    ],
)
def test_main_ends_with_the_exit_code(monkeypatch, arguments, exit_code):
    assert run_main(monkeypatch, *arguments) == exit_code


@pytest.mark.parametrize(
    ("error", "exit_code", "sentence"),
    [
        (RuntimeError("odd"), 1, "Unexpected RuntimeError: odd. Run `vae-anomaly --debug ...` for the traceback."),
        (MemoryError(), 1, "Not enough memory for these data and options."),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1, "Error: Not enough memory"),
        (PermissionError(13, "Permission denied", "m.safetensors"), 1, "Permission denied (m.safetensors)"),
        (ModuleNotFoundError("No module named 'ray'", name="ray"), 5, "pip install ray"),
    ],
    ids=["surprise", "memory", "memory of torch", "permission", "missing package"],
)
def test_other_errors(monkeypatch, error, exit_code, sentence):
    def failing(self, *args, **kwargs):
        raise error

    monkeypatch.setattr(VAEDetector, "fit", failing)
    result = run("fit", "normal.csv", "-o", "m.safetensors", exit_code=exit_code)
    assert sentence in result.stderr
    assert not Path("m.safetensors").exists()


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_that_can_not_be_written(option):
    command = [sys.executable, "-m", "vae_anomaly", option]
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as gone:
        left = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, text=True, check=False)
    assert (left.returncode, left.stderr) == (0, "")
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "wb") as full:
        refused = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (refused.returncode, refused.stderr) == (1, "Error: No space left on device\n")


def test_warnings_of_the_detector_are_shown():
    result = run("fit", "normal.csv", "-o", "m.safetensors", "--max-steps", 60, "--hidden", 16, "--beta", 1000, "-q")
    assert "Warning: Posterior collapse: 6 of 6 members" in result.stderr
    assert "Lower --beta.\n" in result.stderr
    assert ".py" not in result.stderr


def test_debug_shows_the_traceback(monkeypatch):
    def failing(self, *args, **kwargs):
        raise RuntimeError("odd")

    monkeypatch.setattr(VAEDetector, "fit", failing)
    result = run("--debug", "fit", "normal.csv", "-o", "m.safetensors", exit_code=1)
    assert isinstance(result.exception, RuntimeError)
