import threading
import time

import pytest

from vae_anomaly.pipeline import ahead


def test_items_come_in_order_and_few_are_made_ahead():
    made = []

    def items():
        for i in range(50):
            made.append(i)
            yield i

    for i, item in enumerate(ahead(items(), depth=3)):
        assert item == i
        time.sleep(0.001)
        # Three in the queue, one that waits for a place in it.
        assert len(made) <= i + 1 + 3 + 1


def test_an_error_comes_where_its_item_would():
    def items():
        yield 1
        raise ValueError("bad cell")

    found = ahead(items())
    assert next(found) == 1
    with pytest.raises(ValueError, match="bad cell"):
        next(found)


def test_who_stops_early_ends_the_threads_and_closes_the_files():
    closed, before = [], threading.active_count()

    def items():
        try:
            yield from range(1000)
        finally:
            closed.append(True)

    found = ahead(i for i in ahead(items()))
    assert next(found) == 0
    found.close()
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before
    assert closed == [True]
