import itertools
import json
import warnings

import numpy as np
import pandas as pd
import pytest
from tables import mixed

from vae_anomaly import preprocessing
from vae_anomaly.errors import CellError, DataError
from vae_anomaly.preprocessing import MAX_CATEGORIES, MAX_SCALED, Schema


def column(values, dtype=None, **options):
    """What is learned about a column with these values, beside one that varies."""
    frame = pd.DataFrame({"v": pd.Series(values, dtype=dtype), "other": np.arange(float(len(values)))})
    return Schema.infer(frame, **options).columns[0]


def encoded(values, new, **options):
    """Entries of the first column for new values."""
    train = pd.DataFrame({"v": values, "other": np.arange(float(len(values)))})
    schema = Schema.infer(train, **options)
    rows = schema.encode(pd.DataFrame({"v": new, "other": np.zeros(len(new))}))
    return rows[:, schema.owner == 0]


# Kinds ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "kind", "dtype"),
    [
        ([1.5, 2.0, 3.0], "real", "float"),
        ([1.5, np.nan, 3.0, 4.0], "real", "float"),
        ([1, 2, 3], "real", "int"),
        ([1.0, 2.0, 3.0, np.nan], "real", "int"),
        (["1", "2.5", "3"], "real", "float"),
        ([0, 1, 1], "binary", "int"),
        ([2.5, 7.5, 2.5], "binary", "float"),
        ([True, False, True], "binary", "bool"),
        (["open", "shut", "open"], "binary", "text"),
        (["a", "b", "c"], "categorical", "text"),
        (["a", "b", None, "c"], "categorical", "text"),
        (["a", "b", "3"], "categorical", "text"),
        ([7.0, 7.0, 7.0], "binary", "int"),
        ([np.nan, np.nan, np.nan], "ignored", "float"),
        ([None, None, None], "ignored", "float"),
        ([f"note {i}" for i in range(MAX_CATEGORIES + 1)], "ignored", "text"),
    ],
)
def test_kinds(values, kind, dtype):
    found = column(values)
    assert (found.kind, found.dtype) == (kind, dtype)


@pytest.mark.parametrize("dtype", ["int8", "uint16", "Int64", "float32", "Float64"])
def test_numbers_of_any_width_are_real(dtype):
    assert column([1, 2, 3], dtype=dtype).kind == "real"


@pytest.mark.parametrize("dtype", [object, "string", "category"])
def test_texts_of_any_dtype_are_categories(dtype):
    found = column(["b", "a", "c", "a"], dtype=dtype)
    assert (found.kind, found.values) == ("categorical", ("a", "b", "c"))


@pytest.mark.parametrize("dtype", [bool, "boolean"])
def test_booleans(dtype):
    found = column([True, False, True], dtype=dtype)
    assert (found.kind, found.dtype, found.values) == ("binary", "bool", (0.0, 1.0))


def test_what_the_likelihood_describes_decides_kinds():
    assert column([0, 1, 1]).kind == "binary"
    assert column([0, 1, 1], kinds="numbers").kind == "real"
    assert column([0, 1, 2], kinds="categories").kind == "categorical"
    assert column(["a", "b", "a"], kinds="categories").kind == "categorical"


def test_numbers_can_be_taken_as_categories():
    found = column([3, 1, 1, 2], categorical=("v",))
    assert (found.kind, found.values) == ("categorical", ("1", "2", "3"))


@pytest.mark.parametrize(
    ("values", "remark"), [([7.0] * 3, "constant"), (["x"] * 3, "constant"), ([None] * 3, "empty"), ([1, 2, 3], "")]
)
def test_remarks(values, remark):
    assert column(values).remark == remark


def test_many_remarks_are_one_sentence():
    frame = pd.DataFrame({f"c{i}": [1.0, 1.0] for i in range(7)}).assign(v=[1.0, 2.0])
    (note,) = Schema.infer(frame).notes()
    assert note.startswith("7 columns ('c0', 'c1', 'c2', 'c3', 'c4', ...) have one and the same value")


# Categories ----------------------------------------------------------------------------------------------------------


def test_categories_are_ranked_by_frequency_whatever_the_order_of_rows():
    values = ["b"] * 3 + ["c"] * 2 + ["a"] * 2 + ["d"]
    assert column(values).values == ("b", "a", "c", "d")
    assert column(values[::-1]).values == ("b", "a", "c", "d")


def test_only_the_most_frequent_categories_are_kept():
    values = [f"c{i:03d}" for i in range(MAX_CATEGORIES + 10) for _ in range(3 if i < MAX_CATEGORIES else 2)]
    found = column(values)
    assert found.kind == "categorical"
    assert found.values == tuple(f"c{i:03d}" for i in range(MAX_CATEGORIES))
    # One of the others is encoded as the last entry, as a value that was never seen is.
    entries = encoded(values, ["c000", f"c{MAX_CATEGORIES + 1:03d}", "never seen"])
    assert entries.shape == (3, MAX_CATEGORIES + 1)
    assert entries.argmax(axis=1).tolist() == [0, MAX_CATEGORIES, MAX_CATEGORIES]


def test_text_that_hardly_repeats_can_be_named_categorical():
    values = [f"note {i}" for i in range(MAX_CATEGORIES + 1)]
    assert column(values).kind == "ignored"
    assert column(values, categorical=("v",)).kind == "categorical"


@pytest.mark.parametrize(
    ("train", "new"),
    [
        ([1, 2, 3], [1.0, 2.0, 3.0]),
        ([1.0, 2.0, 3.0], [1, 2, 3]),
        ([1, 2, 3], ["1", "2", "3"]),
        (["1", "2", "3"], [1.0, 2.0, 3.0]),
        ([1.5, 2.0, 3.0], ["1.5", "2", "3"]),
    ],
)
def test_a_number_is_the_same_category_however_it_is_written(train, new):
    assert np.array_equal(encoded(train, new, categorical=("v",)), np.eye(3, 4))


def test_true_and_false_are_the_same_category_as_text():
    assert encoded(["True", "False", "maybe"], [True, False]).argmax(axis=1).tolist() == [1, 0]


def test_one_hot_entries():
    entries = encoded(["a", "b", "c", "a"], ["a", "b", "c", "new", None])
    assert entries[:4].tolist() == np.eye(4).tolist()
    assert np.isnan(entries[4]).all()


# Scaling -------------------------------------------------------------------------------------------------------------


def test_reals_are_standardised(rng):
    values = rng.normal(1e6, 3.0, size=500)
    entries = encoded(values, values)
    assert abs(entries.mean()) < 1e-5
    assert entries.std() == pytest.approx(1.0, rel=1e-5)


def test_reals_are_scaled_to_the_unit_interval():
    assert encoded([2.0, 3.0, 6.0], [2.0, 6.0, 4.0, 10.0], scaling="unit").ravel().tolist() == [0.0, 1.0, 0.5, 2.0]


@pytest.mark.parametrize("values", [[0, 1, 1], [10.0, 20.0, 20.0], ["shut", "zopen", "zopen"], [False, True, True]])
def test_binaries_are_0_and_1(values):
    entries = encoded(values, [*values, None])
    assert entries[:3].ravel().tolist() == [0.0, 1.0, 1.0]
    assert np.isnan(entries[3, 0])


@pytest.mark.parametrize(("values", "new"), [([0, 1, 1], 2), (["a", "b", "a"], "c"), ([5.0, 5.0, 5.0], 4.0)])
def test_an_unseen_value_of_a_binary_column_lies_outside_the_unit_interval(values, new):
    assert encoded(values, [new])[0, 0] < -1.0


@pytest.mark.parametrize("values", [[1_000_000, 1_000_001], [0.5, 0.5000001], [-3.000001, -3.0]], ids=str)
def test_two_close_values_of_a_binary_column_are_told_apart(values):
    # Once taken for one and the same, within the tolerance for values written with fewer digits.
    assert encoded(values * 5, values).ravel().tolist() == [0.0, 1.0]


def test_binaries_allow_for_values_written_with_fewer_digits():
    assert encoded([1 / 3, 2 / 3] * 3, [0.3333333, 0.6666667]).ravel().tolist() == [0.0, 1.0]


def test_extreme_values_are_clipped_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        entries = encoded([0.0, 1e-3, 2e-3], [1e308, -1e308, 1e30])
    assert entries.ravel().tolist() == [MAX_SCALED, -MAX_SCALED, MAX_SCALED]
    assert np.isfinite(np.float32(MAX_SCALED) ** 2 / np.float32(0.01) ** 2)


@pytest.mark.parametrize("size", [1e-200, 1e-30, 1e30, 1e200])
def test_units_of_any_size(size):
    values = size * np.array([1.0, 2.0, 3.0, 4.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        entries = encoded(values, values).ravel()
    assert np.isfinite(entries).all()
    assert entries.std() == pytest.approx(1.0, rel=1e-5)


def test_a_constant_column_of_numbers_keeps_its_units():
    assert encoded([7.0, 7.0, 7.0], [7.0, 9.0], kinds="numbers").ravel().tolist() == [0.0, 2.0]


# Numbers and texts in one column -------------------------------------------------------------------------------------


def test_text_among_numbers_names_the_cell():
    with pytest.raises(CellError, match="row 3, column 'v': 'n/k' is not a number") as error:
        column(["1", "2", "n/k", "4"])
    assert error.value.row == 2


def test_mostly_text_is_a_category():
    assert column(["1", "low", "high", "low"]).kind == "categorical"


def test_text_in_a_column_of_numbers_names_the_cell():
    with pytest.raises(CellError, match="row 2, column 'v': 'abc' is not a number"):
        encoded([1.0, 2.0, 3.0], ["1", "abc"])


def test_long_text_is_cut_in_the_message():
    with pytest.raises(CellError) as error:
        column(["1", "2", "x" * 5000, "4"])
    assert len(str(error.value)) < 300


def test_numbers_written_as_text_are_numbers():
    assert np.array_equal(encoded([1.0, 2.0, 3.0], ["1", "2.0", "3e0"]), encoded([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]))


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinite_values_name_the_cell(value):
    with pytest.raises(CellError, match=f"row 2, column 'v': {value:g} is not finite"):
        column([1.0, value, 3.0])
    with pytest.raises(CellError, match=f"row 2, column 'v': {value:g} is not finite"):
        encoded([1.0, 2.0, 3.0], [1.0, value])


@pytest.mark.parametrize("where", ["training", "new"])
def test_infinite_values_among_categories(where):
    infinite, finite = [1.0, 2.0, np.inf, 1.0], [1.0, 2.0, 3.0, 1.0]
    train, new = (infinite, finite) if where == "training" else (finite, infinite)
    with pytest.raises(DataError, match="row 3, column 'v': inf is not finite"):
        encoded(train, new, categorical=("v",))


def test_missing_times_are_missing():
    entries = encoded(pd.date_range("2026-01-01", periods=4), pd.to_datetime(["2026-01-01", None]))
    assert np.isfinite(entries[0]).all()
    assert np.isnan(entries[1]).all()


@pytest.mark.parametrize(
    ("frame", "sentence"),
    [
        ({"a": [1.0, 1.0], "b": ["x", "x"]}, "No column has two different values in the training rows"),
        ({"a": [None, None]}, "No column has two different values in the training rows"),
        ({"a": [f"note {i}" for i in range(100)]}, "No numeric column, and no text column with repeated values"),
    ],
)
def test_nothing_to_learn_from(frame, sentence):
    with pytest.raises(DataError, match=sentence):
        Schema.infer(pd.DataFrame(frame))


# Layout, there and back ----------------------------------------------------------------------------------------------


def with_everything():
    text = [f"note {i}" for i in range(100)]
    return mixed(100).assign(empty=np.nan, same=3, text=text, level=[1.5, 2.5] * 50)


def test_layout_of_an_encoded_row():
    schema = Schema.infer(mixed())
    assert schema.block_sizes() == (3, 2, (4,))
    assert [schema.columns[index].name for index in schema.owner] == [
        "flow", "pressure", "count", "valve", "on", "mode", "mode", "mode", "mode",
    ]  # fmt: skip
    assert schema.encode(mixed()).shape == (200, 9)
    assert schema.encode(mixed()).dtype == np.float32


def test_decoding_undoes_encoding():
    frame = mixed()
    decoded = Schema.infer(frame).decode(Schema.infer(frame).encode(frame))
    assert decoded.dtypes.to_dict() == frame.dtypes.to_dict()
    for name in ("count", "valve", "mode", "on"):
        assert decoded[name].equals(frame[name])
    # float32 entries of size one.
    np.testing.assert_allclose(decoded["flow"], frame["flow"], atol=1e-5)
    np.testing.assert_allclose(decoded["pressure"], frame["pressure"], atol=1e-4)


@pytest.mark.parametrize("share", [0.1, 0.33, 0.9])
@pytest.mark.parametrize("draw", ["lognormal", "poisson", "tied"])
def test_ranks_bend_a_column_and_keep_its_order(draw, share):
    rng = np.random.default_rng(0)
    values = {
        "lognormal": np.exp(2.0 * rng.normal(size=2000)),
        "poisson": rng.poisson(3.0, size=2000).astype(float),
        "tied": np.where(rng.random(2000) < 0.9, 0.0, rng.normal(size=2000)),
    }[draw]
    schema = Schema.infer(pd.DataFrame({"v": values}), rank_share=share)
    entries = schema.encode(pd.DataFrame({"v": values})).ravel().astype(float)
    assert entries.mean() == pytest.approx(0.0, abs=0.02)
    assert entries.std() == pytest.approx(1.0, abs=0.02)
    beyond = np.concatenate([[-100.0], np.sort(values), [values.max() + 1.0, 1e4]])
    image = schema.encode(pd.DataFrame({"v": beyond})).ravel().astype(float)
    assert (np.diff(image)[np.diff(beyond) > 1e-3] > 0.0).all()
    back = schema.decode(image[:, None])["v"].to_numpy()
    np.testing.assert_allclose(back, beyond, rtol=1e-3, atol=1e-3)


def test_a_few_rows_are_encoded_as_many_are():
    """All columns at once, in place of one after the other: the same bits, also on and beyond the knots."""
    rng = np.random.default_rng(0)
    learned = pd.DataFrame(
        {
            "skewed": np.exp(2.0 * rng.normal(size=2000)),
            "few": rng.choice([0.0, 1.0, 5.0], size=2000),
            "large": 1e12 * rng.normal(size=2000),
            "two": rng.choice([0.0, 1.0], size=2000),
            "same": 3.0,
        }
    )
    for share in (0.0, 0.15, 0.9):
        schema = Schema.infer(learned, rank_share=share)
        new = pd.concat([learned, 3.0 * learned - 1.0], ignore_index=True)
        new = new.mask(rng.random(new.shape) < 0.05)
        few = [schema.encode(new.iloc[start : start + 7]) for start in range(0, len(new), 7)]
        np.testing.assert_array_equal(np.concatenate(few), schema.encode(new))


def test_a_bent_column_is_a_weighted_sum_of_value_and_rank():
    values = np.array([0.0, 1.0, 2.0, 3.0, 100.0])
    entries = encoded(values, values, rank_share=0.5).ravel()
    standard = (values - values.mean()) / values.std()
    ranks = (np.arange(5) - 2.0) / np.sqrt(2.0)
    expected = standard + ranks
    np.testing.assert_allclose(entries, expected / expected.std(), rtol=1e-5)


def test_ranks_tell_apart_what_an_outlier_presses_together():
    values = np.append(np.arange(100.0), 1e6)
    plain, bent = (np.ptp(encoded(values, values[:100], rank_share=share)) for share in (0.0, 0.33))
    assert plain < 0.01
    assert bent > 0.5


def test_only_standard_scaling_is_bent():
    values = [0.0, 1.0, 2.0, 8.0]
    assert encoded(values, values, scaling="unit", rank_share=0.5).ravel().tolist() == [0.0, 0.125, 0.25, 1.0]


def test_resolution_of_a_coarse_column_is_its_usual_step():
    coarse = np.repeat([1.0, 2.0, 3.0, 4.0, 9.0], 20)
    assert column(coarse).resolution == pytest.approx(1.0 / coarse.std())
    assert column(np.random.default_rng(0).normal(size=100)).resolution == 0.0


@pytest.mark.parametrize("kinds", ["numbers", "categories"])
@pytest.mark.parametrize("scaling", ["standard", "unit"])
def test_decoding_undoes_encoding_for_every_kind_of_likelihood(kinds, scaling):
    frame = mixed()[["flow", "count", "on"]] if kinds == "numbers" else mixed()[["valve", "mode"]]
    schema = Schema.infer(frame, kinds=kinds, scaling=scaling)
    decoded = schema.decode(schema.encode(frame))
    pd.testing.assert_frame_equal(decoded, frame, rtol=1e-5, atol=1e-5)


def test_holes_stay_holes():
    frame = mixed()
    holes = np.random.default_rng(0).random(frame.shape) < 0.3
    schema = Schema.infer(frame)
    assert np.array_equal(schema.decode(schema.encode(frame.mask(holes))).isna().to_numpy(), holes)


def test_an_ignored_column_is_decoded_as_missing():
    frame = mixed().assign(empty=np.nan)
    schema = Schema.infer(frame)
    assert schema.decode(schema.encode(frame))["empty"].isna().all()


def test_other_is_decoded_as_other():
    schema = Schema.infer(mixed())
    rows = schema.encode(mixed(3).assign(mode="never seen"))
    assert schema.decode(rows)["mode"].tolist() == ["other"] * 3


def test_folding_sums_the_entries_of_each_column():
    schema = Schema.infer(mixed().assign(empty=np.nan))
    folded = schema.fold(np.ones((2, 9)))
    assert folded.tolist() == [[1.0, 1.0, 1.0, 1.0, 4.0, 1.0, 0.0]] * 2


def test_the_order_of_rows_does_not_matter():
    frame = mixed()
    one, two = Schema.infer(frame), Schema.infer(frame[::-1])
    assert [(c.kind, c.values) for c in one.columns] == [(c.kind, c.values) for c in two.columns]
    np.testing.assert_allclose(one.encode(frame), two.encode(frame), rtol=1e-5, atol=1e-6)


def test_a_schema_comes_back_from_json():
    frame = with_everything()
    schema = Schema.infer(frame, categorical=("count",))
    copy = Schema.from_json(json.loads(json.dumps(schema.to_json(), allow_nan=False)))
    assert copy.columns == schema.columns
    assert copy.notes() == schema.notes()
    new = mixed(20, seed=1).assign(empty=1.0, same=[3, 4] * 10, text="x", level=2.5, mode=["run", "never seen"] * 10)
    assert np.array_equal(copy.encode(new), schema.encode(new))
    pd.testing.assert_frame_equal(copy.decode(copy.encode(new)), schema.decode(schema.encode(new)))


def test_decimal_commas_are_named_rather_than_ignored():
    frame = pd.DataFrame({"flow": [1.0, 2.0, 3.0], "temp": ["20,5", None, "-3,25"]})
    with pytest.raises(CellError, match=r"row 1, column 'temp': '20,5' has a decimal comma\. Write it with a point"):
        Schema.infer(frame)
    # A list of codes is none.
    assert Schema.infer(frame.assign(temp=["a,b", "1,2", "x"])).columns[1].kind == "categorical"


@pytest.mark.parametrize("order", ["a b c two code", "a two b code c", "code a two b c"])
@pytest.mark.parametrize("values_at_once", [1, 192, 32768])
def test_a_frame_of_floats_alone_is_encoded_as_its_columns_are(values_at_once, order, rng, monkeypatch):
    monkeypatch.setattr(preprocessing, "VALUES_AT_ONCE", values_at_once)
    frame = pd.DataFrame(rng.normal(size=(300, 3)).round(1), columns=["a", "b", "c"])
    frame["two"], frame["code"] = rng.integers(0, 2, size=300) * 1.0, rng.integers(0, 4, size=300) * 1.0
    frame = frame[order.split()].mask(rng.random(frame.shape) < 0.1)
    schema = Schema.infer(frame, categorical=["code"], rank_share=0.15)
    frame.loc[3, "a"], frame.loc[4, "c"] = 1e300, -1e300
    beside = schema.encode(frame.astype({"b": object}))
    np.testing.assert_array_equal(schema.encode(frame), beside)
    np.testing.assert_array_equal(schema.encode(frame.to_numpy()), beside)
    np.testing.assert_array_equal(schema.encode(np.asfortranarray(frame.to_numpy())), beside)
    for bad, row in itertools.product((np.inf, -np.inf), (7, 250)):
        with pytest.raises(CellError, match=rf"row {row + 1}, column 'b': -?inf is not finite"):
            schema.encode(frame.assign(b=frame["b"].where(frame.index != row, bad)))


@pytest.mark.parametrize("n_rows", [1, 8, 9, 40])
def test_many_columns_are_encoded_as_each_alone(n_rows, rng, monkeypatch):
    monkeypatch.setattr(preprocessing, "COLUMNS_AT_ONCE", 4)
    frame = pd.DataFrame(rng.normal(size=(60, 11)), columns=list("abcdefghijk")).mask(rng.random((60, 11)) < 0.1)
    schema = Schema.infer(frame, rank_share=0.15)
    alone = [schema.columns[index].alone.encode(frame.to_numpy()[:n_rows, [index]]) for index in range(11)]
    np.testing.assert_array_equal(schema.encode(frame[:n_rows]), np.concatenate(alone, axis=1).astype(np.float32))
