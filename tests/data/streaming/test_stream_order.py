import numpy as np
import pytest

from aime_fast.data.streaming.order import StreamOrder
from aime_fast.errors import UserError

LENGTHS, SHARDS = [40, 16, 33, 5, 17, 64], [0, 0, 1, 1, 2, 3]


def order(length=16, seed=7, block=10):
    return StreamOrder(LENGTHS, SHARDS, 4, length, block, seed)


def windows(plan, length):
    """(episode, first frame) of every window of a pass, in order of reading."""
    counts = np.diff(plan.ends, prepend=0)
    return [
        (int(episode), int(offset) + length * n)
        for episode, offset, count in zip(plan.episodes, plan.offsets, counts, strict=True)
        for n in range(count)
    ]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 7, 16, 33])
def test_t_passes_hold_every_valid_start_exactly_once(length, world_size):
    stream = order(length)
    for cycle in range(2):
        seen = [
            window
            for number in range(cycle * length, (cycle + 1) * length)
            for rank in range(world_size)
            for window in windows(stream.pass_of(number, rank, world_size), length)
        ]
        assert sorted(seen) == [(e, s) for e, n in enumerate(LENGTHS) for s in range(n - length + 1)]


def test_no_frame_comes_twice_in_a_pass_and_shards_come_in_many_orders():
    stream, orders = order(), set()
    for number in range(48):
        plan = stream.pass_of(number, 0, 1)
        frames = [(e, f) for e, s in windows(plan, 16) for f in range(s, s + 16)]
        assert len(frames) == len(set(frames))
        assert sorted(plan.shards.tolist()) == [0, 1, 2, 3]
        places = [plan.shards.tolist().index(SHARDS[episode]) for episode in plan.episodes]
        assert places == sorted(places), "an episode is read out of its shard's turn"
        orders.add(tuple(plan.shards.tolist()))
    assert len(orders) > 15


def test_a_window_is_found_again_by_its_number():
    stream = order()
    seen = [(n, place) for n in range(30) for place in range(len(stream.pass_of(n, 1, 2)))]
    assert [order().find(window, 1, 2) for window in range(len(seen))] == seen
    assert stream.find(len(seen) - 1, 1, 2) == seen[-1]


def test_blocks_are_shuffled_each_in_its_own_way():
    stream = order(block=50)
    shuffles = [tuple(stream.shuffled(block, rank, 2)) for block in range(5) for rank in range(2)]
    assert all(sorted(shuffle) == list(range(50)) for shuffle in shuffles)
    assert len(set(shuffles)) == 10
    assert tuple(order(block=50, seed=8).shuffled(0, 0, 2)) not in shuffles


def test_the_order_is_the_one_promised_to_old_checkpoints():
    """Another order would break the resume of runs recorded before."""
    plan = order().pass_of(5, 0, 1)
    assert (plan.shards.tolist(), plan.episodes.tolist(), plan.offsets.tolist()) == (
        [2, 0, 3, 1],
        [0, 1, 5, 2],
        [15, 0, 1, 10],
    )


def test_more_processes_than_shards_are_refused():
    with pytest.raises(UserError, match="4 shards cannot be streamed to 5 processes"):
        order().pass_of(0, 0, 5)
