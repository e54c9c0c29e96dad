import numpy as np
import pandas as pd
import pytest
from tables import mixed

from vae_anomaly import encoding
from vae_anomaly.encoding import encode_rows
from vae_anomaly.errors import CellError
from vae_anomaly.preprocessing import Schema


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(encoding, "PIECE", 16)


@pytest.mark.parametrize("n_rows", [1, 31, 32, 33, 100])
def test_rows_encoded_side_by_side_are_those_encoded_at_once(n_rows):
    frame = mixed(200)
    frame = frame.mask(np.random.default_rng(0).random(frame.shape) < 0.05)
    schema = Schema.infer(frame)
    np.testing.assert_array_equal(encode_rows(schema, frame[:n_rows]), schema.encode(frame[:n_rows]))


def test_an_error_names_the_row_of_the_table_and_the_first_column():
    frame = pd.DataFrame({"one": np.arange(100.0), "two": np.arange(100.0)})
    schema = Schema.infer(frame)
    frame.loc[20, "two"] = np.inf
    frame.loc[70, "one"] = np.inf
    with pytest.raises(CellError, match="'one'") as caught:
        encode_rows(schema, frame)
    assert caught.value.row == 70
