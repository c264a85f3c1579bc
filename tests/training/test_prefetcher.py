"""The feed gives what `fetch` gives, in any order asked, one step ahead and no further."""

import threading

import pytest

from aime_fast.training.prefetcher import Prefetcher


def test_every_step_is_fetched_once_in_order():
    fetched = []
    feed = Prefetcher(lambda step: fetched.append(step) or step * 10, first=3, last=5)
    assert [feed.take(step) for step in range(3, 5)] == [30, 40]
    feed.close()
    assert fetched == [3, 4]


def test_a_jump_is_followed():
    feed = Prefetcher(lambda step: step, first=0, last=None)
    assert [feed.take(step) for step in (0, 1, 7, 8)] == [0, 1, 7, 8]
    feed.close()


def test_an_error_reaches_the_caller():
    def fetch(step):
        if step == 1:
            raise OSError("torn shard")
        return step

    feed = Prefetcher(fetch, first=0, last=None)
    assert feed.take(0) == 0
    with pytest.raises(OSError, match="torn shard"):
        feed.take(1)
    feed.close()


def test_the_first_step_is_fetched_before_it_is_asked_for():
    fetched = threading.Event()
    feed = Prefetcher(lambda step: fetched.set(), first=2, last=3)
    assert fetched.wait(timeout=60)
    feed.close()


def test_a_finished_run_fetches_nothing():
    fetched = []
    feed = Prefetcher(fetched.append, first=3, last=3)
    feed.close()
    assert not fetched
