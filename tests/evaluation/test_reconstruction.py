"""The reconstruction of a model whose errors are known."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from made_windows import windows_of
from torch import nn
from torch.distributions import Normal

from aime_fast.config import preset_config
from aime_fast.evaluation.reconstruction import frame_costs, judge_reconstruction
from aime_fast.evaluation.worth.counterparts import filtering_draws
from aime_fast.model.parts.likelihood import GAUSSIAN_STD
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder as WorldModel
from aime_fast.tasks.aggregator import LossAggregator


class Dimmed(nn.Module):
    """Reconstructs each frame a tenth of the range too dark, bright windows two tenths."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, frames, actions, draws):
        assert not self.training
        assert frames.dtype == torch.float32
        return SimpleNamespace(observations=frames)

    def reconstruct(self, outputs):
        frames = outputs.observations
        return frames - torch.where(frames[:, :1, :1, :1, :1] > 0.5, 0.4, 0.2)


def windows(*levels, frames=5):
    return windows_of(
        [np.full((frames, 16, 16, 3), level, np.uint8) for level in levels], [np.zeros((frames, 2))] * len(levels)
    )


def test_each_window_has_its_value():
    model = Dimmed().train()
    found = judge_reconstruction(model, windows(150, 150, 220, 150))
    first, second = (-20 * torch.log10(torch.tensor([0.1, 0.2])).double()).tolist()
    torch.testing.assert_close(found["psnr"], torch.tensor([first, first, second, first]).double(), atol=1e-4, rtol=0)
    assert found["moving"].isnan().all(), "nothing moves in an episode of equal frames"
    assert model.training


def test_many_windows_pass_in_parts():
    found = judge_reconstruction(Dimmed(), windows(*[150] * 19))
    assert found["psnr"].shape == (19,)
    assert (found["psnr"] - 20).abs().max() < 1e-3


def test_moving_pixels_alone():
    """Half of the frame moves, and the error is everywhere the same."""
    frames = np.full((6, 16, 16, 3), 100, np.uint8)
    frames[:, :8] = (20 + 30 * np.arange(6))[:, None, None, None]
    found = judge_reconstruction(Dimmed(), windows_of([frames], [np.zeros((6, 1))]))
    # Frames darker than a tenth of the range are clipped, the same in both.
    assert 19.9 < found["moving"].item() < 30
    assert found["psnr"].item() > 19.9


def passed(**sizes):
    """Outputs of a model of the `debug` preset, with sampled z."""
    torch.manual_seed(0)
    model = WorldModel.from_config(replace(preset_config("debug").model, action_dim=2, **sizes)).eval()
    frames, actions = torch.rand(2, 5, 3, 64, 64) * 2 - 1, torch.randn(2, 5, 2)
    with torch.no_grad():
        return model(frames, actions, filtering_draws(model, 0, 2, 5))


@torch.no_grad()
def test_what_a_gaussian_model_pays_is_what_torch_says():
    outputs = passed(prior="gaussian", likelihood="gaussian")
    posterior = Normal(*(x[:, :, None] for x in (outputs.posterior_mean, (0.5 * outputs.posterior_log_var).exp())))
    prior = Normal(*(x[:, :, None] for x in (outputs.prior.mean, (0.5 * outputs.prior.log_var).exp())))
    kl = (posterior.log_prob(outputs.samples) - prior.log_prob(outputs.samples)).sum(-1).mean(-1)
    density = Normal(outputs.likelihood.expectation(), GAUSSIAN_STD).log_prob(outputs.pixels).flatten(2).sum(-1)
    found = frame_costs(outputs)
    torch.testing.assert_close(found["kl_z"], kl, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found["nats"], kl - density, rtol=1e-4, atol=0.1)
    torch.testing.assert_close(found["bits_per_dim"], found["nats"] / (64 * 64 * 3 * np.log(2)))


@pytest.mark.parametrize("prior", ["dpgmm", "dpgmm-frame", "gaussian"])
@torch.no_grad()
def test_the_costs_are_those_of_validation(prior):
    outputs = passed(prior=prior)
    losses, _ = LossAggregator().compute_losses(outputs, beta=1.0)
    found = frame_costs(outputs)
    for name in ("kl_z", "bits_per_dim"):
        torch.testing.assert_close(found[name].mean(), losses[name], rtol=1e-4, atol=1e-5)


def test_measures_see_every_fourth_frame():
    def brightness(made, frames):
        return made.mean((-3, -2, -1)) + 0 * frames.mean((-3, -2, -1))

    rising = (150 + 10 * np.arange(10))[:, None, None, None] * np.ones((1, 16, 16, 3))
    found = judge_reconstruction(
        Dimmed(), windows_of([rising.astype(np.uint8)], [np.zeros((10, 2))]), {"level": brightness}
    )
    levels = (150 + 10 * np.array([1, 5, 9])) / 127.5 - 1
    assert found["level"].item() == pytest.approx((levels - 0.2).mean(), abs=1e-5)
