import numpy as np
import pandas as pd
import pytest

from vae_anomaly.frames import holds_text, joined


def test_parts_of_a_table_are_the_table(rng):
    table = pd.DataFrame({
        "flow": rng.normal(size=9), "count": rng.integers(9, size=9), "on": rng.random(9) < 0.5, "valve": [*"abcabcabc"]
    })  # fmt: skip
    parts = [table.iloc[:4], table.iloc[4:5], table.iloc[5:]]
    pd.testing.assert_frame_equal(joined(parts), table)
    pd.testing.assert_frame_equal(joined(parts[::-1], ignore_index=True), pd.concat(parts[::-1], ignore_index=True))


@pytest.mark.parametrize(("one", "other", "wanted"), [
    ([1, 2], ["a", "b"], [1, 2, "a", "b"]),
    ([True, False], [2, 3], [1, 0, 2, 3]),
    ([1, 2], [0.5, np.nan], [1.0, 2.0, 0.5, np.nan]),
])  # fmt: skip
def test_a_column_has_one_type(one, other, wanted):
    column = joined([pd.DataFrame({"x": one}), pd.DataFrame({"x": other})], ignore_index=True)["x"]
    assert holds_text(column) == any(isinstance(value, str) for value in wanted)
    pd.testing.assert_series_equal(column, pd.Series(wanted, name="x"))
