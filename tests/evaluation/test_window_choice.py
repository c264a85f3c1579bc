"""The windows of the protocol."""

import numpy as np
import pytest
import torch
from made_windows import windows_of

from aime_fast.errors import UserError


def episodes(*lengths):
    """Frame t of episode e has the level 10 e + t everywhere, and the action (e, t)."""
    frames = [
        np.broadcast_to((10 * e + np.arange(n))[:, None, None, None], (n, 16, 16, 3)).astype(np.uint8)
        for e, n in enumerate(lengths)
    ]
    return frames, [np.stack([np.full(n, e), np.arange(n)], 1) for e, n in enumerate(lengths)]


def test_windows_lie_inside_episodes_and_know_them():
    windows = windows_of(*episodes(7, 3, 9), length=4, stride=2)
    assert windows.places.tolist() == [[0, 0], [0, 2], [2, 0], [2, 2], [2, 4]]
    batch = windows.batch(np.array([1, 4]))
    assert batch.observations[:, :, 0, 0, 0].tolist() == [[2, 3, 4, 5], [24, 25, 26, 27]]
    assert torch.equal(
        torch.cat([part.observations for _, part in windows.parts(2)]), windows.batch(np.arange(5)).observations
    )


def test_the_partner_is_half_of_all_windows_away():
    windows = windows_of(*episodes(8, 8), length=4, stride=2)
    assert windows.partners.tolist() == [3, 4, 5, 0, 1, 2]
    assert (windows.episodes[windows.partners] != windows.episodes).all()
    assert windows_of(*episodes(4), length=4).partners.tolist() == [0]


def test_a_limit_takes_windows_evenly():
    windows = windows_of(*episodes(21), length=1, stride=1, limit=5)
    assert windows.places[:, 1].tolist() == [0, 5, 10, 15, 20]


def test_moving_pixels_are_judged_by_the_whole_episode():
    frames, actions = episodes(100)
    # Its mean level is 49.5: only frames more than 10 levels away move.
    windows = windows_of(frames, actions, length=3, stride=30)
    moving = windows.moving(np.arange(2), windows.batch(np.arange(2)))
    assert moving.shape == (2, 3, 16, 16)
    assert moving[0].all()
    windows = windows_of(frames, actions, length=3, stride=45)
    assert not windows.moving(np.array([1]), windows.batch(np.array([1]))).any()


def test_episodes_too_short_are_one_line():
    with pytest.raises(UserError, match="a window has 10 frames, but the longest of 2 episodes has 9"):
        windows_of(*episodes(7, 9), length=10)
