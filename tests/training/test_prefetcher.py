"""The prefetcher returns what `fetch` returns, in order, one step ahead and no further."""

import threading

import pytest

from aime_fast.training.prefetcher import Prefetcher


def test_every_step_is_fetched_once_in_order():
    fetched = []
    prefetcher = Prefetcher(lambda step: fetched.append(step) or step * 10, first=3, last=5)
    assert [prefetcher.take() for _ in range(2)] == [30, 40]
    prefetcher.close()
    assert fetched == [3, 4]


def test_an_error_reaches_the_caller():
    def fetch(step):
        if step == 1:
            raise OSError("torn shard")
        return step

    prefetcher = Prefetcher(fetch, first=0, last=None)
    assert prefetcher.take() == 0
    with pytest.raises(OSError, match="torn shard"):
        prefetcher.take()
    prefetcher.close()


def test_the_first_step_is_fetched_before_it_is_asked_for():
    fetched = threading.Event()
    prefetcher = Prefetcher(lambda step: fetched.set(), first=2, last=3)
    assert fetched.wait(timeout=60)
    prefetcher.close()


def test_a_finished_run_fetches_nothing():
    fetched = []
    prefetcher = Prefetcher(fetched.append, first=3, last=3)
    prefetcher.close()
    assert not fetched
