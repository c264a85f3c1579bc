"""Episodes in memory that no file holds."""

import numpy as np

from aime_fast.data.store import Episodes, HeldFrames


def held_episodes(pixels, actions, rewards=None, terminated=False, environment=None):
    """Each argument by episode: pixels uint8 [T, S, S, 3], actions [T, A] and rewards [T], by default zeros."""
    lengths = [len(part) for part in pixels]
    frames, last = sum(lengths), np.cumsum(lengths) - 1
    ends = np.zeros(frames, bool)
    ends[last] = True
    held = [np.concatenate(pixels).reshape(frames, -1)]
    return Episodes(
        description="made",
        environment=environment,
        image_size=pixels[0].shape[-2],
        has_rewards=True,
        origin=None,
        lengths=lengths,
        actions=np.concatenate(actions).astype(np.float32),
        rewards=np.zeros(frames, np.float32) if rewards is None else np.concatenate(rewards).astype(np.float32),
        dones=ends,
        terminated=ends & terminated,
        chunks=None,
        held=HeldFrames(held, np.zeros(len(lengths), np.int64), np.arange(frames)),
    )
