"""What a prediction is made from: filtered frames, futures, actions; nothing that lies after the context."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from made_windows import noise_windows

from aime_fast.config import preset_config
from aime_fast.evaluation.live.snapshot import take_prediction
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder
from aime_fast.reporting.figures import pixels

CONTEXT, LENGTH = 3, 8


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return DPGMMVariationalRecurrentAutoencoder.from_config(replace(preset_config("debug").model, action_dim=6)).eval()


@pytest.fixture(scope="module")
def window():
    return noise_windows(LENGTH).batch(np.arange(1))


def predicted(model, window, samples=2, key=0):
    return take_prediction(model, window, CONTEXT, samples, key)


def test_the_context_is_filtered_and_the_rest_imagined(model, window):
    seen = predicted(model, window)
    assert seen.made.shape == (2, LENGTH, 64, 64, 3) and seen.context == CONTEXT
    frames = window.frames()
    state = model.observe(frames[:, :CONTEXT], window.actions[:, :CONTEXT])
    ahead = model.imagine(state, window.actions[:, CONTEXT - 1 : -1], samples=2)
    for future in range(2):
        np.testing.assert_array_equal(seen.made[future, :CONTEXT], pixels(model.decode(state).mean()[0]))
        np.testing.assert_array_equal(seen.made[future, CONTEXT:], pixels(model.decode(ahead).mean()[future]))
    np.testing.assert_array_equal(seen.truth, window.observations[0])


def test_scores_and_errors_are_those_of_the_pictures(model, window):
    seen = predicted(model, window)
    off = (seen.made.astype(np.float64) - seen.truth) / 255
    decibels = -10 * np.log10((off**2).mean((-3, -2, -1)))
    # Rounding to 256 levels moves each pixel by at most half a level.
    np.testing.assert_allclose(seen.psnr, decibels, atol=0.02)
    np.testing.assert_allclose(seen.errors, np.abs(off).mean(-1), rtol=1e-5)


def changed(window, name, place, value):
    values = getattr(window, name).clone()
    values[:, place] = value(values[:, place])
    return replace(window, **{name: values})


def test_the_model_sees_the_context_and_the_actions_alone(model, window):
    before = predicted(model, window).made
    later = changed(window, "observations", slice(CONTEXT, None), lambda frames: 255 - frames)
    rewarded = changed(later, "rewards", slice(None), lambda rewards: rewards + 1)
    np.testing.assert_array_equal(predicted(model, rewarded).made, before)
    last = changed(window, "actions", -1, lambda actions: actions + 9)
    np.testing.assert_array_equal(predicted(model, last).made, before)
    other = predicted(model, changed(window, "observations", CONTEXT - 1, lambda frames: 255 - frames)).made
    assert (other[:, CONTEXT:] != before[:, CONTEXT:]).any()
    acted = predicted(model, changed(window, "actions", CONTEXT + 1, lambda actions: actions + 9)).made
    np.testing.assert_array_equal(acted[:, : CONTEXT + 2], before[:, : CONTEXT + 2])
    assert (acted[:, CONTEXT + 2 :] != before[:, CONTEXT + 2 :]).any()


def test_futures_differ_and_the_key_chooses_them(model, window):
    seen = predicted(model, window)
    assert (seen.made[0, CONTEXT:] != seen.made[1, CONTEXT:]).any()
    assert (predicted(model, window, key=1).made != seen.made).any()
    np.testing.assert_array_equal(predicted(model, window).made, seen.made)
