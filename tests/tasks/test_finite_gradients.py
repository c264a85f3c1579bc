"""Gradients of every loss term are finite at its edge: empty maps, flat features, far or narrow modes."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from aime_fast.config import LossConfig, preset_config
from aime_fast.model.priors.mixture import MixtureDistribution
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder
from aime_fast.tasks import elbo, predictive
from aime_fast.tasks.aggregator import LossAggregator

CONFIG = replace(preset_config("debug").model, action_dim=2)


def assert_finite_gradients(loss, *leaves):
    assert loss.isfinite()
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    assert any(gradient is not None for gradient in gradients)
    assert all(gradient.isfinite().all() for gradient in gradients if gradient is not None)


@pytest.mark.parametrize("distance", [0.0, 1e3])
@pytest.mark.parametrize("log_var", [-10.0, 0.0, 10.0])
@pytest.mark.parametrize("log_weight", [0.0, -1e4])
def test_latent_terms(distance, log_var, log_weight):
    mean = torch.full((1, 2, 4), distance, requires_grad=True)
    spread = torch.full((1, 2, 4), log_var, requires_grad=True)
    means = torch.zeros(1, 2, 3, 4, requires_grad=True)
    log_vars = torch.full((1, 2, 3, 4), -log_var, requires_grad=True)
    weights = torch.tensor([0.0, log_weight, log_weight]).expand(1, 2, 3).clone().requires_grad_()
    outputs = SimpleNamespace(
        posterior_mean=mean,
        posterior_log_var=spread,
        samples=mean[:, :, None] + (0.5 * spread).exp()[:, :, None] * torch.randn(1, 2, 2, 4),
        prior=MixtureDistribution(weights.log_softmax(-1), means, log_vars),
    )
    terms = elbo.latent_terms(outputs)
    assert_finite_gradients(
        terms["kl_z"] - elbo.cluster_entropy(terms["usage"], terms["responsibility_entropy"]),
        mean,
        spread,
        means,
        log_vars,
        weights,
    )


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e15])
def test_gram_loss(scale):
    features = (scale * torch.randn(2, 3, 5, 4, 4)).requires_grad_()
    assert_finite_gradients(elbo.gram_loss(features, torch.randn(2, 3, 5, 4, 4)), features)


@pytest.mark.parametrize("sharpness", [0.0, 1e4])
def test_attention_terms(sharpness):
    """Flat maps, and maps in one cell that was predicted in another."""
    seen = (sharpness * torch.eye(4).expand(1, 3, 4, 4)).clone().requires_grad_()
    predicted = (sharpness * torch.eye(4).roll(1, 0).expand(1, 2, 4, 4)).clone().requires_grad_()
    motion = torch.zeros(1, 2, 2, 4, requires_grad=True)
    outputs = SimpleNamespace(
        attention=SimpleNamespace(maps=seen.softmax(-1), centres=torch.zeros(1, 3, 4, 2)),
        prior_log_maps=predicted.log_softmax(-1),
        motion=motion,
    )
    terms = [term(outputs) for term in (predictive.attention_kl, predictive.motion_loss, predictive.diversity_loss)]
    assert_finite_gradients(sum(terms), seen, predicted, motion)


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("bias", [-50.0, 50.0])
@pytest.mark.parametrize("precision_weight", [0.0, 1.0])
def test_the_whole_model_with_saturated_heads(frames, bias, precision_weight):
    """Every bias of posterior and prior at an extreme, a window of one frame among them, and frames of one colour."""
    torch.manual_seed(0)
    model = DPGMMVariationalRecurrentAutoencoder.from_config(CONFIG)
    with torch.no_grad():
        for part in (model.posterior, model.prior):
            for name, parameter in part.named_parameters():
                if name.endswith("bias"):
                    parameter.fill_(bias)
    observations = torch.full((1, frames, 3, 64, 64), 255, dtype=torch.uint8)
    outputs = model(observations, torch.full((1, frames, 2), 1e3), model.draws(0, 1, frames))
    aggregator = LossAggregator(LossConfig(precision_weight=precision_weight))
    losses, tasks = aggregator.compute_losses(outputs)
    assert all(loss.isfinite() for loss in losses.values())
    assert_finite_gradients(sum(tasks), *[p for p in model.parameters() if p.requires_grad])
