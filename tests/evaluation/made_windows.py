"""Episodes in memory, made from arrays."""

import numpy as np
from held_episodes import held_episodes

from aime_fast.evaluation.windows import Windows, make_windows


def store_of(frames, actions):
    """A split of episodes: frames uint8 [N,S,S,3] and actions [N,A] of each."""
    return held_episodes(frames, actions, environment="made_up")


def windows_of(frames, actions, length=None, stride=1, limit=None) -> Windows:
    return make_windows(store_of(frames, actions), length or len(frames[0]), stride, limit)


def noise_windows(length, episodes=3, frames=24, actions=6, size=64, stride=4):
    """Random frames, for tests of what is called and not of how good it is."""
    draw = np.random.default_rng(0)
    pixels = [draw.integers(0, 256, (frames, size, size, 3), np.uint8) for _ in range(episodes)]
    acted = [draw.standard_normal((frames, actions)) for _ in range(episodes)]
    return windows_of(pixels, acted, length, stride)
