"""The rolled ridge on a world that is linear."""

import numpy as np
import torch
from made_windows import store_of, windows_of

from aime_fast.evaluation.baseline import fit_rolled_ridge
from aime_fast.evaluation.metrics import psnr

CONTEXT, HORIZON = 3, 6


def world(seed, frames=60):
    """An oscillator with a force, shown as two patterns: level 128 + 60 x in one half, 128 + 60 v in the other."""
    draw = np.random.default_rng(seed)
    actions = draw.uniform(-1, 1, (frames, 1))
    state, shown = draw.uniform(-0.5, 0.5, 2), []
    turn = 0.95 * np.array([[np.cos(0.5), np.sin(0.5)], [-np.sin(0.5), np.cos(0.5)]])
    for action in actions:
        frame = np.empty((16, 16, 3))
        frame[:8], frame[8:] = 128 + 60 * state[0], 128 + 60 * state[1]
        shown.append(frame)
        state = turn @ state + np.array([0.0, 0.3]) * action
    return np.clip(np.stack(shown), 0, 255).round().astype(np.uint8), actions


def test_a_linear_world_is_predicted_and_follows_the_actions():
    pairs = [world(seed) for seed in range(8)]
    frames, actions = zip(*pairs, strict=True)
    ridge = fit_rolled_ridge(store_of(frames[:6], actions[:6]), CONTEXT, HORIZON)
    windows = windows_of(frames[6:], actions[6:], CONTEXT + HORIZON, 5)
    batch, partner = windows.batch(np.arange(len(windows))), windows.batch(windows.partners)
    truth = batch.frames()[:, CONTEXT:]
    made = ridge(batch.frames()[:, :CONTEXT], batch.actions[:, :-1])
    assert made.shape == truth.shape
    # Frames are rounded to levels, so an error of a level or two is what is left.
    assert psnr(made, truth).mean() > 40
    wrong = torch.cat([batch.actions[:, : CONTEXT - 1], partner.actions[:, CONTEXT - 1 : -1]], 1)
    assert psnr(ridge(batch.frames()[:, :CONTEXT], wrong), truth)[:, -1].mean() < 30


def test_predictions_stay_within_what_was_seen():
    frames, actions = world(0)
    ridge = fit_rolled_ridge(store_of([frames], [actions]), CONTEXT, HORIZON)
    rolled = ridge.roll(torch.full((1, CONTEXT, len(ridge.low)), 1e6), torch.zeros(1, CONTEXT + 49, 1))
    assert (rolled >= ridge.low).all() and (rolled <= ridge.high).all()
