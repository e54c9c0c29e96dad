"""Texts that say the same, whoever wrote them."""

import numpy as np
import pandas as pd
import pytest

from vae_anomaly.errors import CellError
from vae_anomaly.preprocessing import Schema
from vae_anomaly.spellings import merged, places, spelling

N = 60
WHOLE = np.arange(N) % 3 + 1


def table(values):
    return pd.DataFrame({"x": np.arange(N, dtype=float), "c": values})


@pytest.mark.parametrize(("texts", "same"), [
    (["1", "1.0", "1.00"], True),
    (["-3", "-3.0"], True),
    (["true", "True", "TRUE"], True),
    (["2024-01-02", "2024-01-02 00:00", "2024-01-02T00:00:00", "2024-01-02 00:00:00.000"], True),
    (["2024-01-02 12:30", "2024-01-02T12:30:00", "2024-01-02 12:30:00.0"], True),
    (["2024-01-02 12:30:00Z", "2024-01-02T12:30:00+00:00"], True),
    (["2024-01-02 12:30:00", "2024-01-02 12:30:01", "2024-01-02 12:30:00Z", "2024-01-02 12:30:00+01:00"], False),
    (["7", "007", "07", "7.5", "7.50", "7.", "7.0.0"], False),
    (["", "-", "1e3", "1000"], False),
    (["yes", "Yes", "truth"], False),
])  # fmt: skip
def test_what_is_the_same(texts, same):
    assert len({spelling(text) for text in texts}) == (1 if same else len(texts))


def test_names_are_found_however_they_are_written():
    assert merged({"1.0": 2, "1": 2, "2.0": 5, "2": 1}) == {"2.0": 6, "1": 4}
    # What is written exactly so comes first.
    texts = ["1", "1.0", "1.00", "x"]
    found = dict(zip(texts, places(["1.0", "1"], texts).tolist(), strict=True))
    assert found == {"1": 1, "1.0": 0, "1.00": 1, "x": -1}


@pytest.mark.parametrize("dtype", [float, object, "Int64", "Float64", np.int8, np.uint64, str])
def test_codes_are_the_same_in_every_type(dtype):
    schema = Schema.infer(table(WHOLE), categorical=["c"])
    wanted = schema.encode(table(WHOLE))
    others = [WHOLE.astype(dtype) if dtype not in ("Int64", "Float64") else pd.array(WHOLE, dtype=dtype)]
    others += [pd.Series(WHOLE.astype(float)).astype(object), [f"{code}.0" for code in WHOLE]]
    for other in others:
        assert np.array_equal(schema.encode(table(other)), wanted)
        assert Schema.infer(table(other), categorical=["c"]).columns[1].width == 4


def test_a_missing_code_makes_no_other_code_an_unseen_one():
    schema = Schema.infer(table(WHOLE), categorical=["c"])
    holed = table(np.where(np.arange(N) == 7, np.nan, WHOLE))
    rest = np.arange(N) != 7
    assert np.array_equal(schema.encode(holed)[rest], schema.encode(table(WHOLE))[rest])


def test_integers_beyond_floats_stay_apart():
    for codes in (2**60 + WHOLE, pd.array(2**60 + WHOLE, dtype="Int64")):
        column = Schema.infer(table(codes), categorical=["c"]).columns[1]
        assert column.values == tuple(str(2**60 + code) for code in (1, 2, 3))


def test_times_are_the_same_from_every_reader():
    times = pd.to_datetime(["2024-01-01 12:30", "2024-01-02 00:00"] * (N // 2))
    schema = Schema.infer(table(times))
    for first, second in (("2024-01-01T12:30:00", "2024-01-02"), ("2024-01-01 12:30", "2024-01-02T00:00:00")):
        assert np.array_equal(schema.encode(table([first, second] * (N // 2))), schema.encode(table(times)))


def test_truth_values_are_the_same_from_every_reader():
    flags = np.arange(N) % 2 == 0
    texts = np.where(flags, "true", "FALSE")
    for categorical in ((), ("c",)):
        for learned in (flags, texts, flags.astype(object)):
            schema = Schema.infer(table(learned), categorical=categorical)
            wanted = schema.encode(table(learned))
            for other in (flags, texts, flags.astype(str), flags.astype(object)):
                assert np.array_equal(schema.encode(table(other)), wanted)


def test_the_cell_that_is_no_truth_value_is_named():
    flags = np.arange(N) % 2 == 0
    texts = flags.astype(str).astype(object)
    texts[41] = "maybe"
    with pytest.raises(CellError, match="column 'c': 'maybe' is neither true nor false") as error:
        Schema.infer(table(flags)).encode(table(texts))
    assert error.value.row == 41


def test_periods_are_times_and_no_numbers():
    days = pd.Series(pd.period_range("2020", periods=N, freq="D"))
    days[5] = pd.NaT
    assert Schema.infer(table(days)).columns[1].dtype == "text"


def test_categorical_columns_with_a_number_for_a_name():
    frame = pd.DataFrame({0: np.arange(N, dtype=float), 1: WHOLE})
    assert Schema.infer(frame, categorical=("1",)).columns[1].kind == "categorical"
    assert Schema.infer(frame, categorical=(1,)).columns[1].kind == "categorical"
