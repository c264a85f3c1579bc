"""Episodes in memory that no file holds."""

import numpy as np

from aime_fast.data.store import Episodes, HeldFrames


def held_episodes(pixels, actions, rewards, terminated=False):
    """Episodes of equal lengths: pixels uint8 [E, T, H, W, 3], actions [E, T, A] and rewards [E, T]."""
    episodes, length = rewards.shape
    ends = np.zeros((episodes, length), bool)
    ends[:, -1] = True
    frames = episodes * length
    return Episodes(
        description="made",
        environment=None,
        image_size=pixels.shape[-2],
        has_rewards=True,
        origin=None,
        lengths=[length] * episodes,
        actions=actions.reshape(frames, -1).astype(np.float32),
        rewards=rewards.reshape(frames).astype(np.float32),
        dones=ends.flatten(),
        terminated=ends.flatten() & terminated,
        chunks=None,
        held=HeldFrames([pixels.reshape(frames, -1).copy()], np.zeros(episodes, np.int64), np.arange(frames)),
    )
