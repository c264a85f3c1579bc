"""Actions in other rows than assumed are noticed, by frames that answer them; right ones are never doubted."""

import sys
from pathlib import Path

import numpy as np
import pytest

from aime_fast.data.alignment import Gains, check_alignment, judge
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


RECORDED = ["ou", "random", "acting_policies:sinusoid", "acting_policies:bang_bang", "acting_policies:smooth_small"]
TASKS = ["cheetah_run", "finger_spin"]


@pytest.mark.slow
def test_recordings_of_five_policies_and_one_that_looks(tmp_path, monkeypatch, capsys):
    """Actions that led to their frame are noticed in nine of ten recordings, and right ones are doubted in none."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    found = {}
    for task in TASKS:
        for policy in [*RECORDED, "acting_policies:feedback"]:
            out = tmp_path / f"{task}-{policy.partition(':')[2] or policy}"
            collect(task, out, episodes=20, length=250, policy=policy, seed=3)
            store = open_store(out, "all")
            episodes = [
                (batch.observations[0].numpy(), batch.actions[0].numpy())
                for number, length in enumerate(store.lengths)
                for batch in [store.gather(np.array([[number, 0]]), length)]
            ]
            lags = (-2, -1, 0, 1, 2, 3)
            gains = Gains(episodes, lags)
            both = [gains.of(innovations) for innovations in (True, False)]
            found[out.name] = [judge(*(part[first : first + 5] for part in both)) for first in (1, 0)]
    with capsys.disabled():
        print(found, file=sys.stderr)
    blind = {name: verdicts for name, verdicts in found.items() if "feedback" not in name}
    assert all(right in ("agrees", "unclear") for right, _ in found.values()), found
    assert sum(late == "later" for _, late in blind.values()) >= 9, found
