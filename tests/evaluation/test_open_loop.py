"""The open loop's figures on models that know the answer, or nothing."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from made_windows import windows_of
from torch import nn

from aime_fast.evaluation.open_loop import open_loop_psnr
from aime_fast.tasks.task import Task

CONTEXT, HORIZON = 3, 4
T = CONTEXT + HORIZON


class World(nn.Module):
    """Frames of one grey level, which each action raises by as many levels of 256; the state is the level.

    Future number i is too bright by `errors[i]` levels.
    """

    def __init__(self, errors=(0,), heeds_actions=True):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.errors, self.heeds_actions = errors, heeds_actions
        self.heads = {"level": lambda state: state[..., 0, 0, 0]}
        self.register_buffer("mean_frame", torch.full((3, 16, 16), 100 / 127.5 - 1))

    def observe(self, frames, actions):
        assert frames.shape[1:] == (CONTEXT, 3, 16, 16)
        assert actions.shape[1] == CONTEXT
        return 127.5 * (frames[:, -1:] + 1)

    def imagine(self, state, actions, samples=1):
        assert actions.shape[1] == HORIZON
        raised = actions[:, None, :, 0].cumsum(2) * self.heeds_actions
        raised = raised + torch.tensor(self.errors)[:samples, None]
        return (state[:, None] + raised[..., None, None, None]).flatten(0, 1)

    def decode(self, state):
        return SimpleNamespace(mean=lambda: state / 127.5 - 1)


class Level(Task):
    """Its head reads the grey level from the state."""

    name, total = "level", "total_level"

    def terms(self, outputs, weights, targets):
        raise NotImplementedError

    def targets(self, batch):
        return {"level": batch.observations[..., 0, 0, 0].float()}

    def predictions(self, read):
        return {"level": read}


def windows(starts, actions):
    """Episodes of one window: number i has grey level starts[i] first, and action actions[i] all along."""
    frames, acted = [], []
    for start, action in zip(starts, actions, strict=True):
        levels = start + action * np.arange(T)
        frames.append(np.broadcast_to(levels[:, None, None, None], (T, 16, 16, 3)).astype(np.uint8))
        acted.append(np.full((T, 1), action))
    return windows_of(frames, acted)


def decibels(levels):
    """PSNR of a frame that is off by so many levels everywhere."""
    return 20 * torch.log10(255 / torch.as_tensor(levels).double())


AHEAD = torch.arange(1, HORIZON + 1)


def close(values, expected):
    """Means over windows [W, horizon]."""
    torch.testing.assert_close(values.mean(0), expected.double().expand(HORIZON), rtol=1e-4, atol=1e-3)


def test_each_row_is_the_error_that_is_known():
    seen = open_loop_psnr(World(errors=(3, -1)), windows([51, 61, 71, 81], [2, 4, 6, 9]), CONTEXT, futures=2)
    assert all(values.shape == (4, HORIZON) for values in seen.psnr.values())
    close(seen.psnr["mean of the futures"], decibels(1))
    close(seen.psnr["one future"], (decibels(3) + decibels(1)) / 2)
    # Partners are two windows apart: their actions differ by 4 and 5 levels a frame, either way.
    close(
        seen.psnr["mean, another window's actions"],
        torch.stack([decibels((sign * gap * AHEAD + 1).abs()) for sign in (1, -1) for gap in (4, 5)]).mean(0),
    )
    close(seen.psnr["last frame copied"], torch.stack([decibels(step * AHEAD) for step in (2, 4, 6, 9)]).mean(0))
    first = torch.tensor([51, 61, 71, 81])[:, None] + torch.tensor([2, 4, 6, 9])[:, None] * (CONTEXT - 1 + AHEAD)
    close(seen.psnr["mean training frame"], decibels((first - 100).abs()).mean(0))


def test_errors_of_heads_stand_next_to_the_best_constant():
    made = windows([51, 61, 71, 81], [2, 4, 6, 9])
    found = open_loop_psnr(World(errors=(3, -1)), made, CONTEXT, futures=2, tasks=[Level()])
    torch.testing.assert_close(found.errors["level"], torch.ones(HORIZON).double(), rtol=1e-4, atol=1e-3)
    truth = made.batch(np.arange(4)).observations[:, CONTEXT:, 0, 0, 0].double()
    expected = (truth - truth.mean()).square().mean(0).sqrt()
    torch.testing.assert_close(found.errors["level, best constant"], expected, rtol=1e-4, atol=1e-3)


def test_a_model_that_copies_is_as_good_as_copying_whatever_the_actions():
    made = windows([50, 60, 70], [2, 4, 6])
    seen = open_loop_psnr(World((0, 0, 0), heeds_actions=False), made, CONTEXT, futures=3)
    for name in ("mean of the futures", "one future", "mean, another window's actions"):
        torch.testing.assert_close(seen.psnr[name], seen.psnr["last frame copied"], rtol=1e-5, atol=1e-3)


def test_baselines_predict_with_both_actions():
    def constant(frames, actions):
        """The level of the first action of the future, in every frame."""
        level = actions[:, CONTEXT - 1, 0][:, None, None, None, None] / 127.5 - 1
        return level.expand(-1, HORIZON, 3, 16, 16)

    made = windows([50, 60], [2, 4])
    seen = open_loop_psnr(World(), made, CONTEXT, futures=1, baselines={"constant": constant})
    truth = made.batch(np.arange(2)).observations[:, CONTEXT:, 0, 0, 0]
    for name, levels in (("constant", (2, 4)), ("constant, another's actions", (4, 2))):
        expected = decibels((truth - torch.tensor(levels)[:, None]).abs())
        torch.testing.assert_close(seen.psnr[name], expected, rtol=1e-4, atol=1e-3)


def test_the_other_actions_are_also_judged_by_where_they_would_have_led():
    made = windows([50, 60], [2, 6])
    led = torch.stack([50 + 2 * 2 + 6 * AHEAD, 60 + 2 * 6 + 2 * AHEAD])
    truth = led[..., None, None, None].expand(2, HORIZON, 16, 16, 3).byte()
    seen = open_loop_psnr(World(errors=(3,)), made, CONTEXT, futures=1, other_truth=truth)
    close(seen.psnr["mean, another's actions, their own truth"], decibels(3))
    assert (seen.psnr["mean, another window's actions"] != seen.psnr["mean of the futures"]).all()


def test_moving_pixels_are_those_of_the_truth():
    """A world of which one quarter moves, predicted as if nothing did."""
    frames = np.full((T, 16, 16, 3), 100, np.uint8)
    levels = 5 * np.arange(T) ** 2
    frames[:, :8, :8] = levels[:, None, None, None]
    seen = open_loop_psnr(
        World((0,), heeds_actions=False), windows_of([frames], [np.zeros((T, 1))]), CONTEXT, futures=1
    )
    error = torch.from_numpy((levels[CONTEXT:] - levels[CONTEXT - 1]) / 255)
    torch.testing.assert_close(seen.moving["last frame copied"][0], -20 * error.log10(), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(seen.psnr["last frame copied"][0], -10 * (error**2 / 4).log10(), rtol=1e-4, atol=1e-3)


def test_frames_that_are_equal_count_as_rounding():
    seen = open_loop_psnr(World(), windows([50, 60], [0, 0]), CONTEXT, futures=1)
    close(seen.psnr["last frame copied"], torch.tensor(58.92))
    assert seen.moving["last frame copied"].isnan().all()


def test_a_window_alone_has_no_other_actions():
    seen = open_loop_psnr(World(errors=(1,)), windows([50], [2]), CONTEXT, futures=1)
    close(seen.psnr["mean of the futures"], decibels(1))
    assert seen.psnr["mean, another window's actions"].isnan().all()


def test_the_model_keeps_its_mode():
    for training in (True, False):
        model = World().train(training)
        open_loop_psnr(model, windows([50, 60], [2, 4]), CONTEXT, futures=1)
        assert model.training is training


@pytest.mark.parametrize("count", [1, 3, 5])
def test_every_window_is_judged_whatever_the_size_of_parts(count):
    seen = open_loop_psnr(World(errors=(5,)), windows([50 + i for i in range(count)], [1] * count), CONTEXT, futures=1)
    assert seen.psnr["mean of the futures"].shape == (count, HORIZON)
    close(seen.psnr["mean of the futures"], decibels(5))
