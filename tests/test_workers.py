import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from vae_anomaly.workers import beside, side_by_side, stream


@pytest.fixture(params=[1, 2, 3])
def n_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_order(n_threads):
    def slow(index):
        time.sleep(0.02 if index == 0 else 0.0)
        return index

    assert list(side_by_side(slow, range(7))) == list(range(7))


def test_each_thread_computes_alone_and_the_caller_as_before(n_threads):
    threads = list(side_by_side(lambda _: (threading.get_ident(), torch.get_num_threads()), range(50)))
    assert {number for _, number in threads} == {1}
    assert threading.get_ident() not in {name for name, _ in threads}
    assert torch.get_num_threads() == n_threads
    others = []
    other = threading.Thread(target=lambda: others.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert others == [n_threads]


def test_work_beside_the_callers_is_done_by_threads_that_compute_alone(n_threads):
    known = threading.Event()

    def told():
        assert known.wait(10)
        return threading.get_ident(), torch.get_num_threads()

    works = [beside(told) for _ in range(3)]
    # It goes on meanwhile.
    assert torch.get_num_threads() == n_threads
    known.set()
    found = [work.result() for work in works]
    assert [number for _, number in found] == [1, 1, 1]
    assert threading.get_ident() not in {thread for thread, _ in found}
    assert torch.get_num_threads() == n_threads


def test_an_error_reaches_the_caller(n_threads):
    with pytest.raises(ZeroDivisionError):
        list(side_by_side(lambda n: 1 // n, [1, 0, 2]))
    assert list(side_by_side(lambda n: n, [3])) == [3]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own(n_threads):
    assert list(side_by_side(lambda n: 2 * n, [1, 2])) == [2, 4]
    child = os.fork()
    if child == 0:
        os._exit(7 if list(side_by_side(lambda n: 2 * n, [3, 4])) == [6, 8] else 1)
    for _ in range(200):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.05)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("The child waits for threads that it does not have.")
    assert os.waitstatus_to_exitcode(status) == 7


FORKED = """
import multiprocessing
import torch
from vae_anomaly.workers import side_by_side

def distances(_):
    return float(torch.cdist(torch.ones(64, 5), torch.zeros(3000, 5)).sum()), torch.get_num_threads()

torch.set_num_threads(2)
list(side_by_side(lambda n: n, [1, 2]))
wanted = distances(0)[0]
with multiprocessing.get_context("fork").Pool(1) as pool:
    assert pool.apply_async(distances, (0,)).get(timeout=30) == (wanted, 1)
assert distances(0) == (wanted, 2)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_does_not_wait_for_threads_of_torch():
    """Scoring in a worker of multiprocessing went on for ever once its parent had computed in two threads."""
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_gradients_are_left_to_the_function(n_threads):
    weight = torch.ones(3, requires_grad=True)
    with torch.no_grad():
        found = list(side_by_side(lambda n: torch.autograd.grad((n * weight).sum(), weight)[0], [1.0, 2.0]))
    assert [value.tolist() for value in found] == [[1.0] * 3, [2.0] * 3]


def test_pieces_of_a_piece_come_in_order_and_no_thread_waits_for_another(n_threads):
    def piece(n):
        return list(side_by_side(lambda m: (n, m, torch.get_num_threads()), range(5)))

    found = list(side_by_side(piece, range(20)))
    assert found == [[(n, m, 1) for m in range(5)] for n in range(20)]


def test_a_thread_with_nothing_to_do_helps(n_threads):
    """The pieces of a lone piece meet, which one thread alone could not have them do."""
    meeting = threading.Barrier(n_threads, timeout=20)
    (found,) = stream(lambda n: list(side_by_side(lambda m: meeting.wait() >= 0, range(n))), iter([n_threads]))
    assert found == [True] * n_threads


def test_an_error_in_a_piece_of_a_piece_reaches_the_caller(n_threads):
    for wrong in (1, 7):
        with pytest.raises(ZeroDivisionError):
            list(side_by_side(lambda _: list(side_by_side(lambda m: 1 // (wrong - m), range(8))), range(3)))  # noqa: B023
    assert list(side_by_side(lambda n: n, [3])) == [3]


def test_a_stream_takes_few_items_ahead_and_keeps_their_order(n_threads):
    taken, ahead = [], []

    def items():
        for n in range(30):
            taken.append(n)
            yield n

    for n, found in enumerate(stream(lambda n: 2 * n, items())):
        assert found == 2 * n
        ahead.append(len(taken) - n)
    assert len(ahead) == 30
    assert max(ahead) <= n_threads + 3


def test_what_is_wrong_with_the_items_comes_after_those_before(n_threads):
    def items():
        yield from (1, 2, 3)
        raise OSError("gone")

    found, results = stream(lambda n: time.sleep(0.02) or n, items()), []
    with pytest.raises(OSError, match="gone"):
        results.extend(found)
    assert results == [1, 2, 3]


def test_a_stream_that_is_closed_begins_nothing_more(n_threads):
    begun, closed = [], []

    def items():
        try:
            yield from range(100)
        finally:
            closed.append(True)

    found = stream(lambda n: begun.append(n) or time.sleep(0.02), items())
    next(found)
    found.close()
    assert closed == [True]
    time.sleep(0.2)
    assert len(begun) <= 2 * n_threads + 4
