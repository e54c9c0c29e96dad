import numpy as np
import pandas as pd
import pytest

from vae_anomaly.csv_text import csv_header, csv_rows
from vae_anomaly.number_texts import exact_texts, short_texts


@pytest.fixture
def numbers(rng):
    """Numbers of all sizes, short and long ones, and those that lie in the middle of two roundings."""
    spread = rng.normal(size=5000) * 10.0 ** rng.integers(-12, 20, size=5000)
    short = rng.integers(0, 20000, size=5000) / 10.0 ** rng.integers(0, 6, size=5000)
    edges = [0.0, -0.0, 1e-4, 0.00099995, 9999.5, 9999.49, 1e9, 1e16, 5e-324, np.inf, -np.inf, np.nan]
    return np.concatenate([spread, short, edges])


def test_texts_are_those_of_python(numbers):
    assert exact_texts(numbers).to_pylist() == [None if x != x else repr(x) for x in numbers.tolist()]
    assert short_texts(numbers).to_pylist() == [None if x != x else f"{x:.4g}" for x in numbers.tolist()]


def test_texts_of_few_different_numbers_are_those_of_python(rng):
    few = rng.choice([0.0, -0.0, 0.1 + 0.2, np.nan, np.inf, 7.0], size=1000)
    # What the beginning does not show comes, too.
    for values in (few, np.append(few, rng.normal(size=1000)), np.repeat(few, 2)[::2]):
        assert exact_texts(values).to_pylist() == [None if x != x else repr(x) for x in values.tolist()]


@pytest.mark.parametrize("special", [",", '"', "\r", "\n"])
def test_a_text_is_quoted_for_each_of_the_special_characters(special):
    frame = pd.DataFrame({"row": [1, 2, 3], "text": pd.Series(["plain", None, f"a{special}b"], dtype="str")})
    assert csv_rows(frame).decode() == f'1,plain\n2,\n3,"a{special.replace(chr(34), 2 * chr(34))}b"\n'


def test_rows_are_those_of_pandas(numbers, rng):
    words = np.array(["", "a", "b,c", 'say "x"', "two\nlines", "é; ü", None], dtype=object)
    frame = pd.DataFrame(
        {
            "row": np.arange(len(numbers)),
            "score, upper": numbers,
            "is_anomaly": pd.array(rng.choice([0, 1, None], size=len(numbers)), dtype="Int64"),
            "text": pd.Series(rng.choice(words, size=len(numbers)), dtype="str"),
            "id": rng.choice(words, size=len(numbers)),
            "nothing": pd.Series([None] * len(numbers), dtype="str"),
        }
    )
    assert csv_header(frame) + csv_rows(frame) == frame.to_csv(index=False, lineterminator="\n").encode()
    assert csv_rows(frame[10:20]) == frame[10:20].to_csv(index=False, header=False, lineterminator="\n").encode()
    assert csv_rows(frame[:0]) == b""
