import gzip
import importlib.util
import io
import json
import re
import sys
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vae_anomaly.data import READERS, Data, read
from vae_anomaly.data.batches import open_batches
from vae_anomaly.data.delimited import MISSING
from vae_anomaly.data.samples import SAMPLES, split_sample
from vae_anomaly.data.table import labels
from vae_anomaly.data.writers import WRITERS, table_format, write_table
from vae_anomaly.errors import DataError, DataWarning

DATASETS = Path(__file__).parent.parent / "datasets"


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def says(sentence):
    """Expect an error with this sentence in it."""
    return pytest.raises(DataError, match=re.escape(sentence))


def save(text, name="pump.csv"):
    Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return name


def column(cells, **options):
    """How a column with these cells is read."""
    rows = "".join(f"{i},{cell}\n" for i, cell in enumerate(cells))
    return read(save("i,v\n" + rows), **options).X["v"]


# CSV: types ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "dtype", "values"),
    [
        (["1", "-2"], "int64", [1, -2]),
        (["1", " 2 "], "int64", [1, 2]),
        (["1", ""], "float64", [1.0, np.nan]),
        (["1", " ", "NA "], "float64", [1.0, np.nan, np.nan]),
        (["1.5", "2e-3"], "float64", [1.5, 0.002]),
        (["inf", "-inf", "Infinity", "1"], "float64", [np.inf, -np.inf, np.inf, 1.0]),
        (["1e400", "-1e400", "1e-400"], "float64", [np.inf, -np.inf, 0.0]),
        (["99999999999999999999", "1"], "float64", [1e20, 1.0]),
        (["9223372036854775807", "1"], "int64", [2**63 - 1, 1]),
        (["true", "False"], "bool", [True, False]),
        (["true", ""], "float64", [1.0, np.nan]),
        (["", "NA"], "float64", [np.nan, np.nan]),
        (["0.1", "0.30000000000000004"], "float64", [0.1, 0.30000000000000004]),
    ],
)
def test_numbers_in_csv(cells, dtype, values):
    found = column(cells)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize(
    "cells",
    [
        ["1", "2", "x"],
        ["2024-01-01", "2024-01-02"],
        ["2024-01-01 10:00:00", "2024-01-02T10:00:00Z"],
        ["12:30", "13:45"],
        ["0x10", "1_000"],
        [" padded", "text "],
        ["007", "x"],
    ],
)
def test_text_in_csv_stays_as_it_is(cells):
    assert column(cells).tolist() == cells


@pytest.mark.parametrize("missing", MISSING)
def test_missing_cells(missing):
    assert column(["1", missing]).isna().tolist() == [False, True]
    assert column(["x", missing]).isna().tolist() == [False, True]


def test_a_late_text_cell_makes_the_column_text():
    cells = [str(i) for i in range(300_000)] + ["broken"]
    Path("long.csv").write_text("v\n" + "\n".join(cells) + "\n")
    assert read("long.csv").X["v"].tolist() == cells


def test_text_columns_are_not_inferred():
    assert column(["007", "2024-01-01"], text_columns=["v"]).tolist() == ["007", "2024-01-01"]
    assert column(["007", "08"]).tolist() == [7, 8]


@pytest.mark.parametrize("dtype", ["int64", "float64"])
def test_text_columns_of_other_formats(dtype):
    pd.DataFrame({"v": np.array([7, 8], dtype)}).to_parquet("pump.parquet")
    assert read("pump.parquet", text_columns=["v"]).X["v"].tolist() == ["7", "8"]


# CSV: shape ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiter_is_found_in_the_header(delimiter):
    path = save(delimiter.join(["a", '"b,c;d|e"', "f"]) + "\n" + delimiter.join("123") + "\n")
    assert dict(read(path).X.iloc[0]) == {"a": 1, "b,c;d|e": 2, "f": 3}


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("Temp, °C;Druck, bar\n21,1;1,1\n20,5;1,2\n", ["Temp, °C", "Druck, bar"]),
        ("Temp, °C;Druck\n21,5;1013\n", ["Temp, °C", "Druck"]),
        ("Temp (°C, inlet);Druck\n1;2\n", ["Temp (°C, inlet)", "Druck"]),
        ("Temp, °C\tDruck, bar\n21,5\t1.013,5\n;,\t\n", ["Temp, °C", "Druck, bar"]),
        ("Ort, Land;Temp, °C\nKöln, DE;21,5\n", ["Ort, Land", "Temp, °C"]),
        ("tags;more,value\na;b,1.5\nc;d,\n", ["tags;more", "value"]),
        ("flow|m3;temp|C,heat\n1,2\n", ["flow|m3;temp|C", "heat"]),
        ('"a;b";"c\n,d"\n"1;2";"3\n,4"\n', ["a;b", "c\n,d"]),
        ("v\n1;2\n3;4\n".replace(";", "."), ["v"]),
        # A sample of the file ends within a row, and within a quoted cell.
        ("a, b;c\n" + "1,5;'x'\n" * 20_000, ["a, b", "c"]),
        ("a, b;c\n" + "1,5;2\n" * 10_000 + '1,5;"x\n' + "y,\n" * 9_000 + '"\n', ["a, b", "c"]),
        # Its header alone is longer, and decides.
        ("\ufeff" + ";".join(["x, mm", *map(str, range(20_000))]) + "\n" + ";".join("1" * 20_001) + "\n", None),
    ],
)  # fmt: skip
def test_delimiter_is_that_of_the_rows_however_they_are_read(text, columns, monkeypatch):
    columns = columns or ["x, mm", *map(str, range(20_000))]
    path = save(text)
    assert list(read(path).X) == columns
    assert list(open_batches(path).features) == columns
    for reader in (read, open_batches):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(text.encode())))
        found = reader("-")
        assert list(found.X if reader is read else found.features) == columns


def test_two_likely_delimiters():
    path = save("a;b,c\nx;y,z\n")
    for reader in (read, open_batches):
        with says("pump.csv: ',' or ';' may stand between its cells. Name the right one with --delimiter."):
            reader(path)
    assert list(read(path, delimiter=";").X) == list(open_batches(path, delimiter=";").features) == ["a", "b,c"]


def test_delimiter_given():
    assert list(read(save("a,b:c\n1,2:3\n"), delimiter=":").X) == ["a,b", "c"]
    with says("The delimiter '::' is not one character."):
        read("pump.csv", delimiter="::")


def test_tsv_with_commas_in_its_names():
    assert list(read(save("a,1,2\tb\n1\t2\n", "pump.tsv")).X) == ["a,1,2", "b"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("rows", [["", "1"], ["1", "", "2"]])
def test_empty_lines_of_one_column_are_told(end, rows):
    path = save(end.join(["a", *rows, "", ""]))
    for table in (lambda: read(path), lambda: next(open_batches(path).read())):
        with pytest.warns(
            DataWarning, match=r'pump\.csv has empty lines, .* Write "" where its only column has no value'
        ):
            table()


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.filterwarnings("error")
def test_lines_of_one_column_that_are_not_empty(end):
    path = save(end.join(["", "a", "1", '""', f'"{end}{end}2"', "3", "", ""]))
    assert len(read(path)) == 4


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_and_blank_lines(end):
    assert read(save(end.join(["", "a,b", "1,2", "", "3,4"]))).X.to_numpy().tolist() == [[1, 2], [3, 4]]


def test_byte_order_mark():
    assert list(read(save("\ufeffa,b\n1,2\n")).X) == ["a", "b"]


def test_quoted_cells():
    data = read(save('"a\nb",note\n1,"two\nlines, ""quoted"""\n2,5" pipe\n3,"ü"\n'))
    assert data.X["a\nb"].tolist() == [1, 2, 3]
    assert data.X["note"].tolist() == ['two\nlines, "quoted"', '5" pipe', "ü"]


def test_nameless_columns_are_named_by_position():
    assert list(read(save(",a,\n0,1,\n")).X) == ["unnamed_0", "a", "unnamed_2"]


def test_header_of_consecutive_integers():
    frame = pd.DataFrame(np.eye(3))
    frame.to_csv("a.csv")
    frame.to_csv("b.csv", index=False)
    assert list(read("a.csv").X) == ["unnamed_0", "0", "1", "2"]
    assert list(read("b.csv").X) == ["0", "1", "2"]


def test_rows_of_more_than_a_mebibyte():
    names = [f"column_{i}" for i in range(10_000)]
    cell = "0." + "1" * 120
    assert read(save(",".join(names) + "\n" + ",".join([cell] * len(names)) + "\n")).X.shape == (1, 10_000)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "pump.csv is empty."),
        (" \n\n", "pump.csv is empty."),
        ("\ufeff", "pump.csv is empty."),
        ("a,b\n", "pump.csv has a header and no rows."),
        ("a,b\n\n \n", "pump.csv has a header and no rows."),
        (",\n1,2\n", "pump.csv: no column has a name. Add a line of column names."),
        (
            "1.5,2\n3,4\n",
            "pump.csv has no header: its first line holds only numbers. Add a line of column names.",
        ),
        ("a,b,a,b,c\n1,2,3,4,5\n", "pump.csv has more than one column named 'a', 'b'. Rename them."),
        (
            "a,b\n1,2\n\n3,4,5\n",
            "pump.csv, row 2: expected 2 cells, found 3. Put cells that hold ',' in quotes, or name another delimiter "
            "with --delimiter.",
        ),
        ('a,b\n1,"x\ny"\n3\n', "pump.csv, row 2: expected 2 cells, found 1."),
        ('a,b\n1,2\n3,"x\n4,5\n', "pump.csv, row 2: a quoted cell does not end."),
        (b"a,b\n1,2\n1,caf\xe9\n", "pump.csv, line 3 is not UTF-8 text. Save the file again as UTF-8."),
        (b"caf\xe9,b\n1,2\n", "pump.csv, line 1 is not UTF-8 text."),
        ("a,b\n1,2\n".encode("utf-16"), "pump.csv, line 1 is not UTF-8 text."),
    ],
)
def test_unusable_csv(content, sentence):
    with says(sentence):
        read(save(content))


@pytest.mark.parametrize("reader", [read, open_batches])
def test_files_of_other_kinds_that_are_called_csv(reader, monkeypatch):
    parquet([1.0, 2.0])
    with says("pump.csv is a Parquet file. Give it a name that ends in .parquet."):
        reader(save(Path("pump.parquet").read_bytes()))
    packed = gzip.compress(b"a,b\n" + bytes(range(32, 127)) * 999)
    with says("pump.csv is compressed with gzip. Unpack it, or give it a name that ends in .csv.gz."):
        reader(save(packed))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(packed)))
    with says("standard input is compressed with gzip. Unpack it"):
        reader("-")
    # The name of a column may begin as such a file does.
    assert list(read(save("PAR1,PAR2\n1,2\n")).X) == ["PAR1", "PAR2"]


# Paths ---------------------------------------------------------------------------------------------------------------


def test_paths_that_lead_nowhere():
    with says("pump.csv does not exist."):
        read("pump.csv")
    with says(
        "pump.xlsx: the suffix '.xlsx' is unknown. Known suffixes are .csv, .csv.gz, .tsv, .parquet, .npy, .npz."
    ):
        read(save("a\n1\n", "pump.xlsx"))
    with says("pump does not exist."):
        read("pump")
    with says("pump.xls does not exist."):
        read("pump.xls")
    with says("valve: the name has no suffix."):
        read(save("a\n1\n", "valve"))
    Path("empty").mkdir()
    with says("empty is a folder without a table. Known suffixes are .csv"):
        read("empty")


def test_folder_that_ends_in_a_suffix_holds_files():
    Path("parts.csv").mkdir()
    save("a\n1\n", "parts.csv/0.csv")
    Path("parts.csv/1.csv").mkdir()
    with says("parts.csv/1.csv can't be opened: Is a directory."):
        read("parts.csv")


def test_path_objects_and_upper_case_suffixes():
    save("a\n1\n", "PUMP.CSV")
    assert read(Path("PUMP.CSV")).name == "PUMP.CSV"


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_standard_input(suffix, monkeypatch):
    write_table(pd.DataFrame({"a": [1, 2], "t": ["x", "y"]}), "piped", format=suffix)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(Path("piped").read_bytes())))
    data = read("-", id="t")
    assert data.X.to_dict("list") == {"a": [1, 2]}
    assert data.ids.tolist() == ["x", "y"]
    assert data.name == "standard input"
    assert data.locate(1) == "standard input, row 2"


def test_empty_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO()))
    with says("standard input is empty."):
        read("-")


def test_gzip():
    save(gzip.compress(b"a,b\n1,2\n"), "pump.csv.gz")
    assert read("pump.csv.gz").X.to_numpy().tolist() == [[1, 2]]


@pytest.mark.parametrize(
    "content", [b"a,b\n1,2\n", gzip.compress(b"a,b\n1,2\n" * 99, mtime=0)[:-9], b"\x1f\x8b\x08junkjunk"]
)
def test_damaged_gzip(content):
    with says("pump.csv.gz is damaged, cut short or not compressed with gzip. Make or copy it again."):
        read(save(content, "pump.csv.gz"))


def test_gzip_of_nothing():
    with says("pump.csv.gz is empty."):
        read(save(gzip.compress(b""), "pump.csv.gz"))


# Folders -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def parts():
    Path("parts").mkdir()
    save("a,b\n1,x\n2,y\n", "parts/0.csv")
    pd.DataFrame({"b": ["z"], "a": [3.5]}).to_parquet("parts/1.parquet")
    save("ignored", "parts/notes.txt")
    save("ignored", "parts/.0.csv")
    return "parts"


def test_a_folder_is_one_table(parts):
    data = read(parts)
    assert data.X.to_dict("list") == {"a": [1.0, 2.0, 3.5], "b": ["x", "y", "z"]}
    assert data.sources == (("parts/0.csv", 2), ("parts/1.parquet", 1))
    assert data.ids.tolist() == [1, 2, 3]
    assert [data.locate(i) for i in range(3)] == ["parts/0.csv, row 1", "parts/0.csv, row 2", "parts/1.parquet, row 1"]


def test_a_folder_with_unlike_columns(parts):
    save("a,b,c\n1,x,5\n", "parts/2.csv")
    with says("parts/0.csv has no column 'c', and parts/2.csv has. Give all files the same."):
        read(parts)
    save("a\n1\n", "parts/2.csv")
    with says("parts/2.csv has no column 'b', and parts/0.csv has."):
        read(parts)


@pytest.mark.parametrize(
    ("cells", "dtype", "values"),
    [
        (("007", "x"), None, ["007", "x"]),
        (("1.50", "x"), None, ["1.50", "x"]),
        (("true", "x"), None, ["true", "x"]),
        (("true", "0"), "int64", [1, 0]),
        (("7", "0.5"), "float64", [7.0, 0.5]),
        (("true", ""), "float64", [1.0, np.nan]),
    ],
)
def test_files_of_unlike_types_in_a_folder(cells, dtype, values):
    Path("parts").mkdir()
    for i, cell in enumerate(cells):
        save(f"i,v\n{i},{cell}\n", f"parts/{i}.csv")
    found = read("parts").X["v"]
    assert found.dtype == (dtype or column(["x"]).dtype)
    assert pd.Series(values, dtype=found.dtype).equals(found)


def test_an_empty_column_beside_text():
    Path("parts").mkdir()
    save("i,v\n1,\n", "parts/0.csv")
    save("i,v\n2,x\n", "parts/1.csv")
    found = read("parts").X["v"]
    assert found.isna().tolist() == [True, False]
    assert found[1] == "x"


# Parquet -------------------------------------------------------------------------------------------------------------


def parquet(values, kind=None):
    pq.write_table(pa.table({"i": list(range(len(values))), "v": pa.array(values, kind)}), "pump.parquet")
    return "pump.parquet"


@pytest.mark.parametrize(
    ("values", "kind", "dtype", "expected"),
    [
        ([1, 2], pa.int8(), "int64", [1, 2]),
        ([1, None], pa.int32(), "float64", [1.0, np.nan]),
        ([1, 2**64 - 1], pa.uint64(), "float64", [1.0, 2.0**64]),
        ([1, 2], pa.uint64(), "int64", [1, 2]),
        ([0.5, None], pa.float32(), "float64", [0.5, np.nan]),
        ([True, False], pa.bool_(), "bool", [True, False]),
        ([True, None], pa.bool_(), "float64", [1.0, np.nan]),
        ([None, None], pa.null(), "float64", [np.nan, np.nan]),
        ([Decimal("1.25"), None], pa.decimal128(5, 2), "float64", [1.25, np.nan]),
    ],
)
def test_numbers_in_parquet(values, kind, dtype, expected):
    found = read(parquet(values, kind)).X["v"]
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (["x", "NA"], pa.large_string(), ["x", "NA"]),
        (["x", "y"], pa.dictionary(pa.int8(), pa.string()), ["x", "y"]),
        ([0, 86400], pa.timestamp("s"), ["1970-01-01T00:00:00", "1970-01-02T00:00:00"]),
        ([0, 1500], pa.timestamp("ms"), ["1970-01-01T00:00:00", "1970-01-01T00:00:01.500"]),
        ([0], pa.timestamp("us", "+02:00"), ["1970-01-01T00:00:00Z"]),
        ([0], pa.date32(), ["1970-01-01"]),
        ([3600], pa.time32("s"), ["01:00:00"]),
    ],
)
def test_text_in_parquet(values, kind, expected):
    assert read(parquet(values, kind)).X["v"].tolist() == expected


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([[1], [2]], pa.list_(pa.int64())),
        ([{"a": 1}], pa.struct({"a": pa.int64()})),
        ([b"x"], pa.binary()),
        ([1], pa.duration("s")),
    ],
)
def test_unusable_types_in_parquet(values, kind):
    path = parquet(values, kind)
    with says(f"pump.parquet, column 'v' is of type {pq.read_schema(path).field('v').type}. Turn it into numbers or"):
        read(path)


def test_the_unnamed_index_of_pandas_is_left_out():
    pd.DataFrame({"a": [1, 2, 3]}, index=[0, 2, 5]).to_parquet("pump.parquet")
    assert "__index_level_0__" in pq.read_schema("pump.parquet").names
    assert list(read("pump.parquet").X) == ["a"]


@pytest.mark.parametrize("content", [b"PAR1junk", b"junk" * 99])
def test_damaged_parquet(content):
    with says("pump.parquet is damaged or not a Parquet file."):
        read(save(content, "pump.parquet"))


@pytest.mark.parametrize("reader", [read, open_batches])
def test_parquet_with_columns_of_one_name(reader):
    pq.write_table(pa.table([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], names=["flow", "flow", "heat"]), "pump.parquet")
    with says("pump.parquet has more than one column named 'flow'. Rename them."):
        reader("pump.parquet")


def test_cut_parquet():
    content = Path(parquet(list(range(1000)))).read_bytes()
    with says("pump.parquet is damaged or not a Parquet file."):
        read(save(content[:500], "pump.parquet"))


def test_parquet_without_rows_or_columns():
    pq.write_table(pa.table({"a": pa.array([], pa.int64())}), "pump.parquet")
    with says("pump.parquet has columns and no rows."):
        read("pump.parquet")
    pq.write_table(pa.table({}), "pump.parquet")
    with says("pump.parquet has no columns."):
        read("pump.parquet")


# NumPy ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("f4", "float64"), ("f8", "float64"), (">f8", "float64"), ("u1", "int64"), (">i4", "int64"), ("bool", "bool")],
)
def test_npy(dtype, expected):
    X = np.array([[0, 1, 1], [1, 0, 1]], dtype)
    np.save("pump.npy", X)
    frame = read("pump.npy").X
    assert list(frame) == ["x0", "x1", "x2"]
    assert set(frame.dtypes) == {np.dtype(expected)}
    np.testing.assert_array_equal(frame, X)


def test_npz_with_labels_and_ids_in_other_arrays():
    np.savez("pump.npz", X=np.eye(3), y=np.array([[0], [1], [0]]), key=np.array(["a", "b", "c"]), z=np.eye(9))
    data = read("pump.npz", label="y", id="key")
    assert data.X.shape == (3, 3)
    assert data.y.tolist() == [0, 1, 0]
    assert data.ids.tolist() == ["a", "b", "c"]
    assert data.dropped == ("y", "key")


def test_npz_with_one_table_under_another_name():
    np.savez("pump.npz", samples=np.eye(3), y=np.zeros(3))
    assert read("pump.npz").X.shape == (3, 3)


def test_npz_with_objects_beside_the_table():
    np.savez("pump.npz", X=np.eye(3), names=np.array([None]))
    assert read("pump.npz").X.shape == (3, 3)


@pytest.mark.parametrize(
    ("arrays", "options", "sentence"),
    [
        ({"a": np.eye(3), "b": np.eye(2)}, {}, "pump.npz holds 'a' of shape (3, 3), 'b' of shape (2, 2). Name the"),
        ({"a": np.zeros(3)}, {}, "pump.npz holds 'a' of shape (3,). Name the table of samples 'X'."),
        ({}, {}, "pump.npz holds no arrays."),
        ({"X": np.zeros(3)}, {}, "pump.npz: expected a table of shape (rows, columns), got shape (3,)."),
        ({"X": np.eye(3), "y": np.zeros(2)}, {"label": "y"}, "pump.npz: 'y' has shape (2,), expected one value for"),
        ({"X": np.eye(3)}, {"label": "y"}, "pump.npz has no column 'y'. Its columns are 'x0', 'x1', 'x2'."),
        ({"X": np.array([[None]])}, {}, "pump.npz holds Python objects, which are never loaded because they can run"),
    ],
)
def test_unusable_npz(arrays, options, sentence):
    np.savez("pump.npz", **arrays)
    with says(sentence):
        read("pump.npz", **options)


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (np.zeros((3, 4, 5)), "pump.npy: expected a table of shape (rows, columns), got shape (3, 4, 5)."),
        (np.array([[None]]), "pump.npy holds Python objects, which are never loaded because they can run code."),
        (np.array([[1j]]), "pump.npy holds complex numbers. Save their real and imaginary parts as columns"),
        (np.array([["2020"]], "M8[D]"), "pump.npy holds values of type datetime64[D]. Save numbers or text."),
        (np.zeros((0, 3)), "pump.npy has columns and no rows."),
        (np.zeros((3, 0)), "pump.npy has no columns."),
    ],
)
def test_unusable_npy(array, sentence):
    np.save("pump.npy", array)
    with says(sentence):
        read("pump.npy")


@pytest.mark.parametrize(
    "content",
    [b"junk", b"\x80\x04N.", b"PK\x03\x04junk", b"\x93NUMPY\x01\x00", b"\x93NUMPY\x01\x00\x10\x00{'descr': (\n     "],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_damaged_numpy(content, suffix):
    with says(f"pump{suffix} is damaged or not a NumPy file. Save it again with numpy.save or numpy.savez."):
        read(save(content, f"pump{suffix}"))


@pytest.mark.parametrize("suffix", READERS)
def test_empty_files(suffix):
    with says(f"pump{suffix} is empty."):
        read(save("", f"pump{suffix}"))


# Labels, ids and columns ---------------------------------------------------------------------------------------------


def label(cells, *normal_value):
    rows = "".join(f"{i},{cell}\n" for i, cell in enumerate(cells))
    return read(save("a,class\n" + rows), label="class", normal_value=normal_value).y


@pytest.mark.parametrize(
    ("cells", "normal_value", "expected"),
    [
        (["0", "1", ""], [], [0, 1, -1]),
        (["0.0", "1.0"], [], [0, 1]),
        (["false", "TRUE"], [], [0, 1]),
        (["1", "1"], [], [1, 1]),
        (["", ""], [], [-1, -1]),
        (["benign", "malignant", ""], ["benign"], [0, 1, -1]),
        (["a", "b", "c"], ["a", "c"], [0, 1, 0]),
        (["-1", "1"], ["1"], [1, 0]),
        (["0", "1", "2", ""], ["0"], [0, 1, 1, -1]),
        (["0.0", "2.5"], ["0"], [0, 1]),
        (["false", "true"], ["0"], [0, 1]),
        (["false", "true"], ["False"], [0, 1]),
        (["0", "1"], ["false"], [0, 1]),
    ],
)
def test_labels(cells, normal_value, expected):
    y = label(cells, *normal_value)
    assert y.dtype == np.int8
    assert y.tolist() == expected


@pytest.mark.parametrize(
    ("cells", "normal_value", "sentence"),
    [
        (
            ["benign", "malignant", ""],
            [],
            "pump.csv, column 'class' holds 'benign', 'malignant'; say which of them is normal with --normal-value.",
        ),
        (["-1", "1"], [], "pump.csv, column 'class' holds -1, 1; say which"),
        (["0", "2", ""], [], "pump.csv, column 'class' holds 0, 2; say which"),
        (["ok", "bad"], ["okay"], "pump.csv, column 'class': no label is 'okay', it holds 'bad', 'ok'."),
        (["", ""], ["ok"], "pump.csv, column 'class': no label is 'ok', it holds empty cells only."),
        (list("abcdefghijkl"), ["z"], "'i', 'j' and 2 more."),
    ],
)
def test_unclear_labels(cells, normal_value, sentence):
    with says(sentence):
        label(cells, *normal_value)


@pytest.mark.parametrize("values", [[0, 1], [False, True], ["0", "1"], ["False", "true"], [0.0, 1.0]])
def test_plain_labels_of_any_type(values):
    assert labels(pd.Series(values, name="y"), (), "pump").tolist() == [0, 1]
    assert labels(pd.Series(values, name="y"), ("1",), "pump").tolist() == [1, 0]


def test_a_normal_value_needs_a_label():
    with says("A normal value was given without a label column. Name the column with --label."):
        read(save("a\n1\n"), normal_value=["ok"])


KEPT = "flow,y,machine,kind\n1,0,7,\n2,1,8,leak\n3,0,7,\n"


def test_kept_columns_are_no_features_and_travel_along():
    data = read(save(KEPT), label="y", keep=["machine", "kind"])
    assert list(data.X) == ["flow"]
    assert data.dropped == ("y", "machine", "kind")
    assert list(data.kept) == ["machine", "kind"]
    assert data.kept["machine"].tolist() == [7, 8, 7]
    assert data.kept["kind"].fillna("").tolist() == ["", "leak", ""]
    assert data.take([2, 1]).kept["machine"].tolist() == [7, 8]
    assert data.normal().kept.index.tolist() == [0, 1]
    assert data.normal().take([True, False]).kept.shape == (1, 2)


def test_without_kept_columns_the_frame_has_rows_and_no_columns():
    data = read(save("flow,y\n1,0\n2,1\n3,0\n"), label="y")
    assert data.kept.shape == (3, 0)
    assert data.normal().kept.shape == (2, 0)


@pytest.mark.parametrize("role", ["label", "id", "drop"])
def test_a_column_may_be_kept_whatever_else_it_is(role):
    options = {"label": {"label": "kind", "normal_value": "ok"}, "id": {"id": "kind"}, "drop": {"drop": ["kind"]}}
    data = read(save("flow,kind\n1,ok\n2,leak\n"), keep="kind", **options[role])
    assert data.kept["kind"].tolist() == ["ok", "leak"]
    assert data.dropped == ("kind",)


def test_kept_columns_of_folders_and_standard_input(monkeypatch):
    Path("parts").mkdir()
    save("flow,machine\n1,007\n", "parts/a.csv")
    save("machine,flow\npress,2\n", "parts/b.csv")
    assert read("parts", keep=["machine"]).kept["machine"].tolist() == ["007", "press"]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"flow,machine\n1,007\n")))
    assert read("-", keep=["machine"], text_columns=["machine"]).kept["machine"].tolist() == ["007"]


def test_an_array_beside_the_table_may_be_kept():
    np.savez("pump.npz", X=np.eye(3), machine=np.array([7, 8, 7]))
    assert read("pump.npz", keep=["machine"]).kept["machine"].tolist() == [7, 8, 7]


def test_a_kept_column_that_is_not_there():
    with says("pump.csv has no column 'machin'. Its columns are 'machine', 'flow', 'y', 'kind'."):
        read(save(KEPT), keep=["machin"])


def test_label_id_and_dropped_columns_are_no_features():
    data = read(save("a,key,y,junk\n1,007,0,x\n2,008,1,y\n"), label="y", id="key", drop=["junk"])
    assert list(data.X) == ["a"]
    assert data.ids.tolist() == ["007", "008"]
    assert data.id_name == "key"
    assert data.dropped == ("y", "key", "junk")


def test_one_name_in_place_of_a_list():
    data = read(save("a,junk,y\n1,x,ok\n"), drop="junk", label="y", normal_value="ok")
    assert list(data.X) == ["a"]
    assert data.y.tolist() == [0]


@pytest.mark.parametrize(
    ("cells", "ids"),
    [
        (["3", "1", "3"], [3, 1, 3]),
        (["03", "1"], ["03", "1"]),
        (["1.0", "2"], ["1.0", "2"]),
        (["2024-01-01", "x"], ["2024-01-01", "x"]),
        (["1", ""], ["1", ""]),
        (["99999999999999999999"], ["99999999999999999999"]),
    ],
)
def test_ids_are_as_they_stand_in_the_file(cells, ids):
    found = read(save("key,a\n" + "".join(f"{cell},1\n" for cell in cells)), id="key").ids
    assert found.tolist() == ids


@pytest.mark.parametrize("options", [{"label": "flwo"}, {"id": "flwo"}, {"drop": ["flwo"]}, {"text_columns": ["flwo"]}])
def test_columns_that_do_not_exist(options):
    with says("pump.csv has no column 'flwo'. Its columns are 'flow', 'a', 'b'."):
        read(save("a,b,flow\n1,2,3\n"), **options)


def test_a_long_list_of_columns_is_cut():
    names = [f"c{i}" for i in range(15)]
    with says("'c9' and 5 more."):
        read(save(",".join(names) + "\n" + ",".join(["x"] * 15) + "\n"), label="zz")


def test_no_feature_left():
    with says("pump.csv has no column left besides 'y', 'a': there are no features."):
        read(save("a,y\n1,0\n"), label="y", drop=["a"])


# Data ----------------------------------------------------------------------------------------------------------------


def test_normal_rows_keep_their_ids_and_places():
    data = read(save("a,y\n1,0\n2,1\n3,\n4,0\n"), label="y")
    normal = data.normal()
    assert normal.X["a"].tolist() == [1, 4]
    assert normal.X.index.tolist() == [0, 1]
    assert normal.ids.tolist() == [1, 4]
    assert [normal.locate(i) for i in range(2)] == ["pump.csv, row 1", "pump.csv, row 4"]
    assert normal.take([1]).locate(0) == "pump.csv, row 4"
    assert len(data.take([False] * 4)) == 0


def test_without_labels_all_rows_are_normal():
    data = read(save("a\n1\n2\n"))
    assert data.y is None
    assert len(data.normal()) == 2


def test_locate_beyond_the_end():
    with pytest.raises(IndexError, match=r"pump\.csv has 1 rows, there is no sample 1"):
        read(save("a\n1\n")).locate(1)


def test_fingerprint_is_of_names_and_values_and_not_of_the_format():
    frame = pd.DataFrame({"a": [1, 2], "b": [0.5, np.nan], "t": ["x", None]})
    prints = {}
    for suffix in WRITERS:
        write_table(frame, f"pump{suffix}")
        prints[suffix] = read(f"pump{suffix}").fingerprint()
    assert len(set(prints.values())) == 1
    assert re.fullmatch("[0-9a-f]{64}", prints[".csv"])
    others = [frame.rename(columns={"a": "c"}), frame.assign(a=[1, 3]), frame.assign(t=["y", None]), frame[::-1]]
    for other in others:
        write_table(other, "other.csv")
        assert read("other.csv").fingerprint() != prints[".csv"]


def test_fingerprint_of_numbers_is_the_same_on_every_machine():
    data = Data(pd.DataFrame({"a": [1, 2]}), None, np.array([1, 2]), "row", "pump", (("pump", 2),))
    assert data.fingerprint() == "96382ebae6d21d6289d31090e506f17ace70064cc8dc5b005cb7dc285676bd88"


# Writing -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", WRITERS)
def test_round_trip(suffix):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "x": rng.normal(size=200) * 10.0 ** rng.integers(-300, 300, 200),
            "holes": np.where(rng.random(200) < 0.2, np.nan, rng.random(200)),
            "extreme": np.resize([np.inf, -np.inf, 5e-324, 1.7976931348623157e308, -0.0], 200),
            "n": rng.integers(-(2**62), 2**62, 200),
            "flag": rng.random(200) < 0.5,
            "text": np.resize(["plain", 'a "quoted", one', "two\nlines", "ü; |\t"], 200),
        }
    )
    write_table(frame, f"out{suffix}")
    pd.testing.assert_frame_equal(read(f"out{suffix}").X, frame, check_exact=True)


@pytest.mark.parametrize("suffix", WRITERS)
def test_equal_frames_give_equal_bytes_under_any_name(suffix):
    frame = pd.DataFrame({"a": [1.5, 2.5]})
    write_table(frame, "one.part", format=suffix)
    write_table(frame, f"two{suffix}")
    assert Path("one.part").read_bytes() == Path(f"two{suffix}").read_bytes()


def test_a_column_of_one_with_a_missing_cell_keeps_its_rows():
    write_table(pd.DataFrame({"a": [1.0, np.nan, 2.0]}), "out.csv")
    assert len(read("out.csv")) == 3


def test_table_format():
    assert [table_format(f"scores{suffix}") for suffix in WRITERS] == list(WRITERS)
    with says("scores.xlsx: the suffix '.xlsx' is unknown. Known suffixes are .csv, .csv.gz, .parquet."):
        table_format("scores.xlsx")
    with says("The format '.xlsx' is unknown. Choose from .csv, .csv.gz, .parquet."):
        write_table(pd.DataFrame({"a": [1]}), "scores.csv", format=".xlsx")


# Samples and the datasets folder -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_split_without_loss(name):
    frame, info = SAMPLES[name]()
    train, test = split_sample(name)
    normal = frame[info.label].astype(str) == info.normal_value
    assert len(train) == round(normal.sum() * 2 / 3)
    assert len(train) + len(test) == len(frame)
    assert test["anomaly"].sum() == (~normal).sum()
    assert list(test.drop(columns="anomaly")) == list(train) == list(frame.drop(columns=info.label))
    together = pd.concat([train, test.drop(columns="anomaly")]).sort_values(list(train)).to_numpy()
    np.testing.assert_array_equal(together, frame.drop(columns=info.label).sort_values(list(train)).to_numpy())


@pytest.mark.parametrize("name", SAMPLES)
def test_the_seed_makes_the_split(name):
    pd.testing.assert_frame_equal(split_sample(name, seed=1)[0], split_sample(name, seed=1)[0])
    assert not split_sample(name, seed=1)[0].equals(split_sample(name, seed=2)[0])


def test_unknown_sample():
    with says("Unknown sample 'iris'. Choose from 'breast-cancer', 'digits'."):
        split_sample("iris")


def load_make():
    spec = importlib.util.spec_from_file_location("datasets_make", DATASETS / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_datasets_folder_is_what_its_script_makes():
    assert load_make().differing(DATASETS) == []
    assert load_make().main(["--check"]) == 0


@pytest.mark.parametrize("file", ["digits/test.csv", "manifest.json", "README.md"])
def test_the_check_finds_a_changed_file(file, monkeypatch, capsys):
    make = load_make()
    Path("README.md").write_bytes((DATASETS / "README.md").read_bytes())
    make.make(Path.cwd())
    monkeypatch.setattr(make, "HERE", Path.cwd())
    assert make.main(["--check"]) == 0
    Path(file).write_text("changed")
    assert make.main(["--check"]) == 1
    assert f"differs: {file}" in capsys.readouterr().err


@pytest.mark.parametrize("name", SAMPLES)
def test_the_datasets_folder_reads_back_as_the_split(name):
    facts = json.loads((DATASETS / "manifest.json").read_text())[name]
    train, test = split_sample(name)
    data = read(DATASETS / name / "test.csv", label=facts["label"])
    pd.testing.assert_frame_equal(read(DATASETS / name / "train.csv").X, train)
    pd.testing.assert_frame_equal(data.X, test.drop(columns="anomaly"))
    assert (data.y == test["anomaly"]).all()
    assert facts["features"] == data.X.shape[1]
    assert facts["files"]["test.csv"]["rows"] == len(data)
    assert facts["files"]["test.csv"]["anomalies"] == data.y.sum()
    assert facts["files"]["train.csv"]["rows"] == len(train)


@pytest.mark.parametrize("values", [
    pa.array([["x"], []]), pa.array([{"a": 1}, None]), pa.array([b"x", None]), pa.array([1, 2], pa.duration("s")),
], ids=["list", "struct", "binary", "duration"])  # fmt: skip
def test_a_column_of_any_type_can_be_left_out(values):
    pq.write_table(pa.table({"flow": [1.0, 2.0], "other": values}), "new.parquet")
    for reading in (read, lambda path, **options: next(iter(open_batches(path, **options).read(["flow"]))).data):
        with pytest.raises(DataError, match="column 'other' is of type"):
            reading("new.parquet")
        assert reading("new.parquet", drop=["other"]).X["flow"].tolist() == [1.0, 2.0]
