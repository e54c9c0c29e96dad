import gzip
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tables import TINY, mixed, read_predictions, run

from vae_anomaly import score_file
from vae_anomaly.data import batches, csv_blocks, read
from vae_anomaly.data.batches import open_batches
from vae_anomaly.detector import VAEDetector, load
from vae_anomaly.errors import DataError
from vae_anomaly.predictions import predict_table


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "pump.safetensors"
    VAEDetector(**TINY).fit(mixed()).calibrate(mixed(150, seed=9)).save(path)
    return path


@pytest.fixture(scope="module")
def by_machine(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "machines.safetensors"
    machines = pd.Series(np.arange(200) % 2 + 7, name="machine")
    VAEDetector(**TINY, fpr=0.1).fit(mixed(), groups=machines).save(path)
    return path


@pytest.fixture(autouse=True)
def _small_batches(tmp_path, monkeypatch):
    """Batches of a few rows, so that small tables are large ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(batches, "BLOCK_SIZE", 1800)
    monkeypatch.setattr(batches, "MAX_ROWS", 35)
    monkeypatch.setattr("vae_anomaly.partial.NOTE_EVERY", 0.0)


def rows():
    """Rows of every sort: normal, flagged, without a value, infinite, with a category never seen."""
    frame = mixed(200, seed=1)
    frame.loc[40:79, "pressure"] += 80.0
    frame = frame.astype({"on": object})
    frame.loc[[7, 150], :] = np.nan
    frame.loc[90, "flow"] = np.inf
    frame.loc[120, "valve"] = "ajar"
    return frame.assign(machine=np.arange(200) % 3 + 7, pump=[f"p{i}, east" for i in range(200)])


def whole(model, path, output, *, fdr=None, **options):
    """Predictions of a table that was read whole, as pandas writes them."""
    detector = load(model, device="cpu")
    group = [] if detector.groups_ is None else [detector.groups_.column]
    data = read(path, text_columns=["valve", "mode", *group], keep=group, **options)
    table, _ = predict_table(detector, data, fdr=fdr, score_names=("kl",))
    if str(output).endswith(".parquet"):
        table.to_parquet(output, index=False)
    else:
        table.to_csv(output, index=False, lineterminator="\n")
    return Path(output).read_bytes()


def save(frame, name):
    if name.endswith(".parquet"):
        frame.to_parquet(name, index=False, row_group_size=70)
    else:
        frame.to_csv(name, index=False, sep="\t" if name.endswith(".tsv") else ",")
    return name


@pytest.mark.parametrize(
    ("name", "fdr"),
    [("new.csv", None), ("new.csv", 0.2), ("new.csv.gz", None), ("new.tsv", 0.2), ("new.parquet", None)],
)
def test_batches_give_the_table_of_all_rows(model, name, fdr):
    save(rows().drop(columns="machine"), name)
    options = [] if fdr is None else ["--fdr", fdr]
    result = run("score", model, name, "-o", "scores.csv", "--id", "pump", "--scores", "kl", "--json", *options)
    assert Path("scores.csv").read_bytes() == whole(model, name, "wanted.csv", id="pump", fdr=fdr)
    summary, table = json.loads(result.stdout), read_predictions("scores.csv")
    assert summary["flagged"] == table["is_anomaly"].sum() > 5
    assert summary["rows"] == 200
    assert summary["not_scored"] == table["reason"].notna().sum() == 3
    assert sorted(os.listdir()) == sorted([name, "scores.csv", "wanted.csv"])


@pytest.mark.parametrize("fdr", [None, 0.2])
def test_batches_give_the_table_of_all_rows_by_group(by_machine, fdr):
    save(rows().drop(columns="pump"), "new.csv")
    options = [] if fdr is None else ["--fdr", fdr]
    result = run("score", by_machine, "new.csv", "-o", "scores.csv", "--scores", "kl", *options)
    assert Path("scores.csv").read_bytes() == whole(by_machine, "new.csv", "wanted.csv", fdr=fdr)
    assert "66 rows have no 'machine' that the model was calibrated on" in result.stderr


@pytest.mark.parametrize("fdr", [None, 0.2])
def test_a_parquet_file_is_that_of_all_rows(model, fdr):
    save(rows().drop(columns=["machine", "pump"]), "new.csv")
    options = [] if fdr is None else ["--fdr", fdr]
    run("score", model, "new.csv", "-o", "scores.parquet", "--scores", "kl", *options)
    assert Path("scores.parquet").read_bytes() == whole(model, "new.csv", "wanted.parquet", fdr=fdr)


def test_ids_that_are_not_all_numbers_are_text_in_parquet(model):
    frame = mixed(200, seed=1).assign(pump=[*map(str, range(199)), "last"])
    save(frame, "new.csv")
    run("score", model, "new.csv", "-o", "scores.parquet", "--id", "pump")
    assert pd.read_parquet("scores.parquet")["pump"].tolist() == frame["pump"].tolist()


def test_row_groups_do_not_depend_on_batches(model, monkeypatch):
    monkeypatch.setattr(score_file, "ROW_GROUP", 64)
    save(mixed(200, seed=1), "new.csv")
    run("score", model, "new.csv", "-o", "one.parquet")
    monkeypatch.setattr(batches, "BLOCK_SIZE", 3000)
    run("score", model, "new.csv", "-o", "two.parquet")
    assert Path("one.parquet").read_bytes() == Path("two.parquet").read_bytes()


def test_a_packed_output_is_read_back(model):
    save(mixed(200, seed=1), "new.csv")
    run("score", model, "new.csv", "-o", "scores.csv.gz")
    run("score", model, "new.csv", "-o", "scores.csv")
    assert gzip.decompress(Path("scores.csv.gz").read_bytes()) == Path("scores.csv").read_bytes()
    assert len(read("scores.csv.gz", text_columns=["rule"])) == 200


@pytest.mark.parametrize(("name", "options"), [("new.csv", ()), ("new.parquet", ("--fdr", "0.2"))])
def test_standard_input_to_standard_output(model, name, options):
    save(mixed(200, seed=1), name)
    run("score", model, name, "-o", "scores.csv", *options)
    result = run("score", model, "-", *options, input=Path(name).read_bytes())
    assert result.stdout_bytes == Path("scores.csv").read_bytes()


def test_a_folder_of_files(model):
    frame = mixed(200, seed=1)
    Path("parts").mkdir()
    save(frame[:70], "parts/a.parquet")
    save(frame[70:150][frame.columns[::-1]], "parts/b.csv")
    save(frame[150:], "parts/c.csv.gz")
    save(frame, "new.csv")
    run("score", model, "parts", "-o", "parts.csv")
    run("score", model, "new.csv", "-o", "scores.csv")
    assert Path("parts.csv").read_bytes() == Path("scores.csv").read_bytes()


# What is wrong in a late batch ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("9,x7,20,open,idle,True", "new.csv, row 151, column 'pressure': 'x7' is not a number."),
        ("9,8", "new.csv, row 151: expected 6 cells, found 2."),
        ('9,"8,20,open,idle,True', "new.csv, row 151: a quoted cell does not end."),
        ("9,8,20,op\udcffen,idle,True", "new.csv, line 152 is not UTF-8 text."),
    ],
    ids=["text", "ragged", "quote", "bytes"],
)
def test_a_bad_row_in_a_late_batch(model, line, sentence):
    lines = mixed(200, seed=1).to_csv(index=False).splitlines()
    lines.insert(151, line)
    Path("new.csv").write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    result = run("score", model, "new.csv", "-o", "scores.csv", exit_code=3)
    assert sentence in result.stderr
    assert os.listdir() == ["new.csv"]


def test_a_bad_cell_in_a_late_file(model):
    Path("parts").mkdir()
    save(mixed(100, seed=1), "parts/a.csv")
    save(mixed(100, seed=2).assign(pressure=lambda frame: ["8.5"] * 80 + ["x7"] + ["8.5"] * 19), "parts/b.parquet")
    result = run("score", model, "parts", "-o", "scores.csv", exit_code=3)
    assert "parts/b.parquet, row 81, column 'pressure': 'x7' is not a number." in result.stderr


def test_a_packed_file_that_is_cut_short(model):
    save(mixed(400, seed=1), "new.csv.gz")
    Path("new.csv.gz").write_bytes(Path("new.csv.gz").read_bytes()[:-2000])
    result = run("score", model, "new.csv.gz", "-o", "scores.csv", exit_code=3)
    assert "new.csv.gz is damaged, cut short or not compressed with gzip." in result.stderr
    assert os.listdir() == ["new.csv.gz"]


def test_words_and_numbers_in_one_column_of_numbers(model):
    frame = mixed(200, seed=1).astype({"count": object})
    frame.loc[:20, "count"] = " 7 "
    frame.loc[150:, "count"] = "1e999"
    save(frame, "new.csv")
    run("score", model, "new.csv", "-o", "scores.csv", "--scores", "kl")
    assert Path("scores.csv").read_bytes() == whole(model, "new.csv", "wanted.csv")
    assert (read_predictions("scores.csv")["reason"][150:] == "column 'count' is infinite").all()


@pytest.mark.parametrize("late", [False, True])
def test_words_beside_numbers_are_slips_in_whichever_batch(model, late):
    frame = mixed(200, seed=1).astype({"count": object})
    row = 180 if late else 3
    frame.loc[row - 1 : row + 40, "count"] = "true"
    save(frame, "new.csv")
    result = run("score", model, "new.csv", "-o", "scores.csv", exit_code=3)
    assert f"new.csv, row {row}, column 'count': 'true' is not a number." in result.stderr


# Going on ------------------------------------------------------------------------------------------------------------


def cut_off(monkeypatch, after, error, *arguments):
    """Run that fails when it has written some batches."""
    done, append = [], score_file.Partial.append

    def failing(self, *args):
        if len(done) == after:
            raise error
        done.append(None)
        append(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(score_file.Partial, "append", failing)
        return run(*arguments, exit_code=1)


@pytest.mark.parametrize(
    ("name", "output", "options"),
    [
        ("new.csv", "scores.csv", ()),
        ("new.csv.gz", "scores.csv.gz", ("--fdr", "0.2")),
        ("new.parquet", "scores.csv.gz", ()),
        ("parts", "scores.parquet", ()),
        ("parts", "scores.csv", ("--fdr", "0.2")),
    ],
)
def test_a_run_that_was_cut_off_goes_on(model, monkeypatch, name, output, options):
    frame = rows().drop(columns="machine")
    Path("parts").mkdir()
    save(frame[:70], "parts/a.csv")
    save(frame[70:], "parts/b.parquet")
    if name != "parts":
        save(frame, name)
    arguments = ["score", model, name, "-o", output, "--id", "pump", *options]
    wanted = json.loads(run(*arguments, "--json").stdout)
    content = Path(output).read_bytes()
    Path(output).unlink()

    result = cut_off(monkeypatch, 3, KeyboardInterrupt(), *arguments)
    assert f"{output}.partial; the same command with --resume goes on from there" in result.stderr
    assert not Path(output).exists()
    with Path(f"{output}.partial").open("ab") as file:
        file.write(b"half a ba")
    scored = []
    with monkeypatch.context() as patch:
        predicted = score_file.predicted
        patch.setattr(score_file, "predicted", lambda *args, **more: scored.append(None) or predicted(*args, **more))
        assert json.loads(run(*arguments, "--resume", "--json").stdout) == wanted
    assert Path(output).read_bytes() == content
    assert 0 < len(scored) < len(list(open_batches(name).read())) - 2
    assert not list(Path().glob("*.partial*"))


def test_a_run_that_was_cut_off_is_not_gone_on_with_unasked(model, monkeypatch):
    save(mixed(200, seed=1), "new.csv")
    arguments = ["score", model, "new.csv", "-o", "scores.csv"]
    cut_off(monkeypatch, 2, OSError(28, "No space left on device"), *arguments)
    for change in (["--top", 1], ["--scores", "kl"], ["--fdr", 0.1]):
        result = run(*arguments, *change, "--resume", exit_code=3)
        assert f"scores.csv.partial was made by another run: the option {change[0]} differs" in result.stderr
        assert "goes on from there" not in result.stderr
    state = Path("scores.csv.partial.state").read_bytes()
    Path("scores.csv.partial.state").write_bytes(state[:50])
    assert "scores.csv.partial.state is damaged" in run(*arguments, "--resume", exit_code=3).stderr
    Path("scores.csv.partial.state").write_bytes(state)
    assert "Replacing scores.csv.partial" in run(*arguments).stderr
    assert sorted(os.listdir()) == ["new.csv", "scores.csv"]
    assert len(read_predictions("scores.csv")) == 200


@pytest.mark.parametrize("options", [(), ("--resume",)])
def test_a_file_that_no_run_left_is_kept(model, options):
    save(mixed(200, seed=1), "new.csv")
    Path("scores.csv.partial").write_text("mine")
    arguments = ["score", model, "new.csv", "-o", "scores.csv", *options]
    result = run(*arguments, exit_code=2)
    assert "-o scores.csv: scores.csv.partial is in the way, and no run left it that can be gone on" in result.stderr
    assert Path("scores.csv.partial").read_text() == "mine"
    assert "Replacing scores.csv.partial, which can't be gone on with." in run(*arguments, "--overwrite").stderr
    assert sorted(os.listdir()) == ["new.csv", "scores.csv"]


def test_a_full_disk_leaves_nothing_that_can_not_be_gone_on_with(model, monkeypatch):
    def failing(*args, **kwargs):
        raise OSError(28, "No space left on device")

    save(mixed(200, seed=1), "new.csv")
    with monkeypatch.context() as patch:
        patch.setattr("vae_anomaly.partial.os.fsync", failing)
        result = run("score", model, "new.csv", "-o", "scores.csv", exit_code=1)
    assert result.stderr.splitlines()[-1] == "Error: No space left on device"
    assert os.listdir() == ["new.csv"]


def test_data_that_changed_are_scored_anew_only(model, monkeypatch):
    save(mixed(200, seed=1), "new.csv")
    arguments = ["score", model, "new.csv", "-o", "scores.csv"]
    cut_off(monkeypatch, 2, KeyboardInterrupt(), *arguments)
    save(mixed(200, seed=2), "new.csv")
    assert "made by another run: the data differs" in run(*arguments, "--resume", exit_code=3).stderr


def test_resume_where_there_is_nothing_to_go_on_with(model):
    save(mixed(200, seed=1), "new.csv")
    result = run("score", model, "new.csv", "-o", "scores.csv", "--resume")
    assert "There is no scores.csv.partial to go on with" in result.stderr
    for arguments in (["new.csv"], ["-", "-o", "more.csv"]):
        assert "--resume is for files" in run("score", model, *arguments, "--resume", exit_code=2).stderr


def test_few_batches_are_read_ahead(model, monkeypatch):
    read_so_far, written = [], []
    frames, append = batches._Csv.frames, score_file.Partial.append

    def counted(self, *args):
        for found in frames(self, *args):
            read_so_far.append(None)
            yield found

    def slow(self, *args):
        written.append(len(read_so_far))
        append(self, *args)

    monkeypatch.setattr(batches._Csv, "frames", counted)
    monkeypatch.setattr(score_file.Partial, "append", slow)
    save(mixed(800, seed=1), "new.csv")
    run("score", model, "new.csv", "-o", "scores.csv")
    # One in each hand, and two in each of the two queues.
    assert max(ahead - done for done, ahead in enumerate(written, start=1)) <= 7
    assert len(written) > 15


# The parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_blocks_are_whole_rows_whatever_the_cells_hold(end, rng, tmp_path):
    pieces = ["", "1.5", '"a, b"', f'"two{end}lines"', '"say ""no"""', "é", f'"{end}"', 'half"quoted']
    lines = [",".join(rng.choice(pieces[:-1], size=3)) for _ in range(300)]
    lines = [line if line.strip(",") else "x,y,z" for line in lines]
    text = end.join(lines).encode()
    for size in (40, 100, 1000):
        with (tmp_path / "text").open("w+b") as file:
            file.write(text)
            file.seek(0)
            blocks = list(csv_blocks.blocks_of_rows(file, csv_blocks.RowEnds(","), "x.csv", size))
        assert b"".join(blocks) == text
        ends = {len(end.join(lines[: i + 1]).encode()) + len(end) for i in range(len(lines))}
        cuts = np.cumsum([len(block) for block in blocks])[:-1]
        assert len(cuts) > 3
        # Between \r and \n there is but an empty line.
        assert {int(cut) for cut in cuts} <= ends | {place - len(end) + 1 for place in ends}


def test_a_row_without_an_end(monkeypatch, tmp_path):
    monkeypatch.setattr(csv_blocks, "MAX_ROW_SIZE", 1 << 12)
    (tmp_path / "x").write_bytes(b'1,"2\n' + b"3,4\n" * 5000)
    with (tmp_path / "x").open("rb") as file, pytest.raises(ValueError, match="If a quoted cell does not end"):
        list(csv_blocks.blocks_of_rows(file, csv_blocks.RowEnds(","), "x.csv", 1000))


@pytest.mark.parametrize(("name", "fdr"), [
    ("p_value", None), ("is_anomaly", None), ("p_value", 0.1), ("is_anomaly", 0.1), ("rule", 0.1),
    ("adjusted_p_value", 0.1),
])  # fmt: skip
def test_ids_in_a_column_of_the_predictions_name_are_refused(model, name, fdr):
    source = save(rows().rename(columns={"pump": name}), "new.csv")
    scoring = score_file.ScoreRun(load(model, device="cpu"), open_batches(source, id=name, drop=["machine"]), fdr=fdr)
    with pytest.raises(
        DataError, match=rf"new\.csv: the column of ids is called '{name}', as is one of the predictions"
    ):
        scoring.to_file("scores.csv", ".csv", task={})
    assert os.listdir() == ["new.csv"]
