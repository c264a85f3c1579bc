"""The open loop's figures on models that know the answer, or nothing."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from aime_fast.data.batch import Batch
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
        self.register_buffer("mean_frame", torch.full((3, 8, 8), 100 / 127.5 - 1))

    def observe(self, frames, actions):
        assert frames.shape[1:] == (CONTEXT, 3, 8, 8)
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
    """One batch: window i has grey level starts[i] first, and action actions[i] all along."""
    steps = torch.tensor(actions).float()[:, None].expand(-1, T)
    levels = torch.tensor(starts)[:, None] + torch.cat([torch.zeros(len(starts), 1), steps[:, 1:].cumsum(1)], dim=1)
    frames = levels.byte()[..., None, None, None].expand(-1, -1, 8, 8, 3).contiguous()
    return Batch(frames, steps[..., None].contiguous(), torch.zeros_like(steps), torch.zeros_like(steps).bool())


def decibels(levels):
    """PSNR of a frame that is off by so many levels everywhere."""
    return 20 * torch.log10(255 / torch.as_tensor(levels).double())


AHEAD = torch.arange(1, HORIZON + 1)


def close(values, expected):
    torch.testing.assert_close(values, expected.double().expand(HORIZON), rtol=1e-4, atol=1e-3)


def test_each_row_is_the_error_that_is_known():
    seen = open_loop_psnr(World(errors=(3, -1)), [windows([51, 61, 71, 81], [2, 4, 6, 9])], CONTEXT, futures=2)
    assert seen.windows == 4
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
    batch = windows([51, 61, 71, 81], [2, 4, 6, 9])
    found = open_loop_psnr(World(errors=(3, -1)), [batch], CONTEXT, futures=2, tasks=[Level()])
    close(found.errors["level"], torch.ones(HORIZON))
    truth = batch.observations[:, CONTEXT:, 0, 0, 0].double()
    close(found.errors["level, best constant"], (truth - truth.mean()).square().mean(0).sqrt())
    assert f"{'level, RMSE':34}  1.0000  1.0000" in str(found)


def test_a_model_that_copies_is_as_good_as_copying_whatever_the_actions():
    seen = open_loop_psnr(World((0, 0, 0), heeds_actions=False), [windows([50, 60, 70], [2, 4, 6])], CONTEXT, futures=3)
    close(seen.psnr["mean of the futures"], seen.psnr["last frame copied"])
    close(seen.psnr["one future"], seen.psnr["last frame copied"])
    close(seen.psnr["mean, another window's actions"], seen.psnr["last frame copied"])


def test_windows_count_alike_whatever_the_batch():
    starts, actions = list(range(40, 60)), [1 + i % 7 for i in range(20)]
    whole = open_loop_psnr(World(errors=(5,)), [windows(starts, actions)], CONTEXT, futures=1)
    parts = [windows(starts[:11], actions[:11]), windows(starts[11:], actions[11:])]
    split = open_loop_psnr(World(errors=(5,)), parts, CONTEXT, futures=1)
    for name in whole.psnr.keys() - {"mean, another window's actions"}:
        close(split.psnr[name], whole.psnr[name])
    assert split.windows == whole.windows == 20


def test_a_window_alone_has_no_other_actions():
    seen = open_loop_psnr(World(errors=(1,)), [windows([50], [2])], CONTEXT, futures=1)
    close(seen.psnr["mean of the futures"], decibels(1))
    assert seen.psnr["mean, another window's actions"].isnan().all()
    assert "nan" in str(seen)
    assert f"{'frames ahead':34}       1       2" in str(seen)


def test_no_windows_is_an_error():
    with pytest.raises(ValueError, match="no windows"):
        open_loop_psnr(World(), [], CONTEXT)
