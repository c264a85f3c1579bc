"""Actions in other rows than assumed are noticed, by frames that answer them; right ones are never doubted."""

import sys
from pathlib import Path

import numpy as np
import pytest

from aime_fast.data.alignment import LAGS, Gains, check_alignment, judge
from aime_fast.data.collect.collect import collect
from aime_fast.data.store import open_store

POLICIES = {"white": 0.0, "autocorrelated": 0.6}


def moving_square(random, length, memory):
    """A grey square that an action pushes in two directions against friction, and the actions beside each frame."""
    actions = np.zeros((length, 2))
    for t in range(length):
        actions[t] = memory * actions[t - 1] + np.sqrt(1 - memory**2) * random.standard_normal(2)
    place, speed = np.full(2, 16.0), np.zeros(2)
    rows, frames = np.arange(32), np.empty((length, 32, 32, 3), np.uint8)
    for t in range(length):
        shades = [np.clip(4.5 - np.abs(rows - x), 0, 1) for x in place]
        frames[t] = (40 + 180 * np.outer(*shades))[..., None] + random.integers(0, 4, (32, 32, 3))
        speed = 0.7 * speed + 0.8 * actions[t]
        place = np.clip(place + speed, 6, 26)
    return frames, actions.astype(np.float32)


def moved(episodes, rows):
    """The same frames with each action `rows` later than it belongs."""
    if rows >= 0:
        return [(frames[rows:], actions[: len(actions) - rows]) for frames, actions in episodes]
    return [(frames[:rows], actions[-rows:]) for frames, actions in episodes]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("rows", "verdict"), [(1, "later"), (0, "agrees"), (-1, "earlier")])
def test_a_pushed_square(policy, rows, verdict):
    random = np.random.default_rng(5)
    episodes = [moving_square(random, 161, POLICIES[policy]) for _ in range(12)]
    assert check_alignment(moved(episodes, rows)).verdict == verdict


def test_nothing_is_said_without_an_answer():
    random = np.random.default_rng(0)
    episodes = [moving_square(random, 100, 0.5) for _ in range(6)]
    others = [
        (frames, actions) for (frames, _), (_, actions) in zip(episodes, episodes[1:] + episodes[:1], strict=True)
    ]
    assert check_alignment(others).line is None
    assert check_alignment(episodes[:3]).line is None
    assert check_alignment([(frames[:40], actions[:40]) for frames, actions in episodes]).line is None
    assert check_alignment([(frames, 0 * actions) for frames, actions in episodes]).line is None
    assert check_alignment([(frames, actions[:, :0]) for frames, actions in episodes]).line is None
    assert check_alignment([]).line is None


def made_gains(means, seed=0):
    """Gains [rows, 40 blocks] of these means, with a standard error of 0.05."""
    noise = np.random.default_rng(seed).standard_normal((len(means), 40))
    return np.array(means)[:, None] + 0.05 * np.sqrt(40) * noise


@pytest.mark.parametrize("seed", range(4))
def test_what_gains_tell(seed):
    """By hand: rows from two earlier to three later; innovations, then the actions themselves."""

    def verdict(innovation, plain):
        return judge(made_gains(innovation, seed), made_gains(plain, seed + 9))

    flat = [0.0] * 6
    assert verdict([2, 3, 4, 0, 0, 0], flat) == "agrees"
    assert verdict([1, 2, 3, 4, 0, 0], flat) == "later"
    assert verdict([4, 4, 0, 0, 0, 0], flat) == "earlier"
    # A slow swing answers the innovation a row late: by itself the later row's action says more.
    assert verdict([4, 3, 1, 0, 0, 0], [0, 0, 3, 6, 4, 2]) == "unclear"
    # A policy that looks at frames: they answer it in row 0, and later actions tell of the change again.
    assert verdict([0, 3, 0, 1, 0, 0], [1, 3, 1, 2, 1, 1]) != "later"
    # Gains that grow towards the earliest row have no peak there; the slow swing of a joint looks so.
    assert verdict(flat, [4, 2, 1, 0, 0, 0]) == "unclear"
    assert verdict(flat, [1, 4, 2, 1, 0, 0]) == "earlier"


RECORDED = ["ou", "random", "acting_policies:sinusoid", "acting_policies:bang_bang", "acting_policies:smooth_small"]
TASKS = ["cheetah_run", "finger_spin"]
MORE = ("acting_policies:sinusoid", "acting_policies:smooth_small")
"""Their actions have hardly an innovation, so more frames are needed."""


@pytest.mark.slow
def test_recordings_of_five_policies_and_one_that_looks(tmp_path, monkeypatch, capsys):
    """Actions that led to their frame are noticed in nine of ten recordings, and right ones are doubted in none.

    No wrong remedy is named, whether actions are a row early or late.
    """
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    found = {}
    for task in TASKS:
        for policy in [*RECORDED, "acting_policies:feedback"]:
            out = tmp_path / f"{task}-{policy.partition(':')[2] or policy}"
            episodes, length = (20, 250) if policy in MORE else (8, 150)
            collect(task, out, episodes=episodes, length=length, policy=policy, seed=3)
            store = open_store(out, "all")
            recorded = [
                (batch.observations[0].numpy(), batch.actions[0].numpy())
                for number, length in enumerate(store.lengths)
                for batch in [store.gather(np.array([[number, 0]]), length)]
            ]
            gains = Gains(recorded, (LAGS[0] - 1, *LAGS, LAGS[-1] + 1))
            both = [gains.of(innovations) for innovations in (True, False)]
            found[out.name] = [judge(*(part[first : first + len(LAGS)] for part in both)) for first in (0, 1, 2)]
    with capsys.disabled():
        print(found, file=sys.stderr)
    blind = {name: verdicts for name, verdicts in found.items() if "feedback" not in name}
    true = ("later", "agrees", "earlier")
    pairs = [pair for row in found.values() for pair in zip(row, true, strict=True)]
    assert all(verdict in (shown, "unclear") for verdict, shown in pairs), found
    assert sum(row[0] == "later" for row in blind.values()) >= 9, found
