"""Tables that come in parts: fitted on as if they were whole, or known from a uniform sample."""

import numpy as np
import pandas as pd
import pytest
from tables import TINY, mixed

from vae_anomaly import VAEDetector, in_parts
from vae_anomaly.errors import CellError, DataError
from vae_anomaly.in_parts import TableInParts, survey
from vae_anomaly.scratch import on_disk


def cut(frame, *places):
    """Parts of a frame that end at these places."""

    def parts(texts):
        for start, end in zip((0, *places), (*places, len(frame)), strict=True):
            yield frame.iloc[start:end]

    return parts


@pytest.mark.parametrize("n_rows", [300, 2100])
def test_a_table_in_parts_is_fitted_on_as_if_it_were_whole(n_rows):
    frame = mixed(n_rows)
    whole = VAEDetector(**TINY).fit(frame)
    parts = VAEDetector(**TINY).fit(TableInParts(cut(frame, 1, 100, 100, 290)))
    np.testing.assert_array_equal(parts.anomaly_score(frame), whole.anomaly_score(frame))
    assert parts.threshold_ == whole.threshold_
    assert parts.schema_.to_json() == whole.schema_.to_json()
    assert parts.fingerprint_ == whole.fingerprint_
    assert parts.sample(3).columns.tolist() == frame.columns.tolist()


def test_which_rows_are_drawn_does_not_hang_on_where_the_parts_end():
    frame = pd.DataFrame({"x": np.arange(1000.0)})
    drawn = [survey(cut(frame, *places), 50, seed=3) for places in ((), (1,), (40, 60, 500), range(1, 1000))]
    for found in drawn:
        assert found.n_rows == 1000
        assert found.sample["x"].tolist() == drawn[0].sample["x"].tolist() == found.positions.tolist()
    assert survey(cut(frame, 500), 50, seed=4).positions.tolist() != drawn[0].positions.tolist()


def test_every_row_is_drawn_equally_often():
    """None of the first rows for being first, and none of the last."""
    frame = pd.DataFrame({"x": np.zeros(40)})
    counts = np.zeros(40)
    for seed in range(400):
        found = survey(cut(frame, 7, 30), 10, seed)
        assert len(found.positions) == len(set(found.positions.tolist())) == 10
        counts[found.positions] += 1
    # Binomial with mean 100 and deviation 8.7: five deviations.
    assert abs(counts - 100).max() < 44


def test_the_schema_comes_from_sampled_rows_that_are_trained_on(monkeypatch):
    monkeypatch.setattr(in_parts, "MIN_SAMPLE_ROWS", 500)
    monkeypatch.setattr(in_parts, "SAMPLE_ENTRIES", 0)
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"flow": rng.normal(5.0, 2.0, size=3000), "row": np.arange(3000.0)})
    table = TableInParts(cut(frame, 1000, 2999))
    assert (len(table), len(table.sample), table.exact) == (3000, 500, False)
    odd = np.arange(1, 3000, 2)
    some, rows = table.known(odd)
    assert 200 < len(rows) < 300
    assert set(rows.tolist()) <= set(odd.tolist())
    assert some["row"].tolist() == rows.tolist()
    detector = VAEDetector(**TINY).fit(table)
    assert detector.schema_.columns[0].center == pytest.approx(5.0, abs=0.5)
    assert detector.n_rows_ == {"train": 2400, "calibration": 600}


def test_encoded_rows_lie_on_disk():
    frame = mixed(100)
    table = TableInParts(cut(frame, 20))
    schema = VAEDetector(max_steps=2, n_estimators=1).fit(frame).schema_
    encoded = table.encode(schema)
    assert on_disk(encoded)
    np.testing.assert_array_equal(encoded, schema.encode(frame))


def test_a_column_that_is_text_in_one_part_is_text_in_all():
    """What looks like a number is asked for anew as the text that it is."""
    asked = []

    def parts(texts):
        asked.append(tuple(texts))
        yield pd.DataFrame({"code": ["007", "008"] if "code" in texts else [7, 8], "x": [1, 2]})
        yield pd.DataFrame({"code": [None, None], "x": [np.nan, 4.5]})
        yield pd.DataFrame({"code": ["A9"], "x": [True]})

    found = survey(parts, 10, seed=0)
    assert asked == [(), ("code",)]
    assert found.texts == ("code",)
    assert found.sample["code"].dropna().tolist() == ["007", "008", "A9"]
    assert found.sample["x"].dropna().tolist() == [1.0, 2.0, 4.5, 1.0]


def test_errors_name_the_row_of_the_table():
    frame = pd.DataFrame({"x": np.arange(100.0)})
    frame.loc[23, "x"] = np.inf
    with pytest.raises(CellError, match=r"row 24, column 'x': inf is not finite"):
        VAEDetector(max_steps=2, n_estimators=1).fit(TableInParts(cut(frame, 10, 20)))
    with pytest.raises(DataError, match="has no rows"):
        TableInParts(lambda texts: iter([]))
