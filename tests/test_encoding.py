import numpy as np
import pandas as pd
import pytest
import torch
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


def test_an_array_is_encoded_in_pieces(rng):
    frame = of_all_kinds(rng)
    schema = Schema.infer(frame)
    np.testing.assert_array_equal(encode_rows(schema, frame.to_numpy()), schema.encode(frame))


def test_an_error_names_the_row_of_the_table_and_the_first_column():
    frame = pd.DataFrame({"one": np.arange(100.0), "two": np.arange(100.0)})
    schema = Schema.infer(frame)
    frame.loc[20, "two"] = np.inf
    frame.loc[70, "one"] = np.inf
    with pytest.raises(CellError, match="'one'") as caught:
        encode_rows(schema, frame)
    assert caught.value.row == 70


def of_all_kinds(rng):
    frame = pd.DataFrame(rng.normal(size=(300, 4)) ** 3, columns=list("abcd"))
    frame["two"], frame["same"], frame["coarse"] = rng.integers(0, 2, size=300) * 1.0, 3.0, frame["a"].round(1)
    return frame.mask(rng.random(frame.shape) < 0.1)


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_device_encodes_the_bits_of_a_processor(order, rng, monkeypatch):
    frame = of_all_kinds(rng)
    schema = Schema.infer(frame, rank_share=0.15)
    frame.iloc[3, 0], frame.iloc[4, 2], frame.iloc[5, 3] = 1e300, -1e300, frame.iloc[6, 3]
    frame = pd.DataFrame(np.array(frame, order=order), columns=frame.columns)
    # What a GPU would do, by torch on a processor.
    there = encoding._RealsThere(schema.reals, torch.device("cpu"))
    for values_there in (7 * 50, 10**9):
        monkeypatch.setattr(encoding, "VALUES_THERE", values_there)
        np.testing.assert_array_equal(schema.encode(frame, there), schema.encode(frame))
    frame.iloc[7, 1] = -np.inf
    with pytest.raises(encoding._InfiniteError):
        schema.encode(frame, there)


def test_a_device_may_have_nothing_to_encode(rng):
    frame = pd.DataFrame(rng.integers(0, 2, size=(50, 3)) * 1.0)
    schema = Schema.infer(frame)
    there = encoding._RealsThere(schema.reals, torch.device("cpu"))
    np.testing.assert_array_equal(schema.encode(frame, there), schema.encode(frame))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_gpu_encodes_the_bits_of_a_processor(order, rng):
    frame = of_all_kinds(rng)
    schema = Schema.infer(frame, rank_share=0.15)
    frame = pd.DataFrame(np.array(frame, order=order), columns=frame.columns)
    np.testing.assert_array_equal(encode_rows(schema, frame, "cuda"), schema.encode(frame))
    frame.iloc[7, 1] = np.inf
    with pytest.raises(CellError, match="row 8, column 'b': inf is not finite"):
        encode_rows(schema, frame, "cuda")
