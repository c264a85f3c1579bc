"""The tasks are the weighted terms, each counted once."""

import math
from dataclasses import replace

import torch

from aime_fast.config import LossConfig, preset_config
from aime_fast.data.batch import Batch
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder
from aime_fast.tasks import elbo
from aime_fast.tasks.aggregator import LossAggregator
from aime_kernels.logistic_mixture.fused import fused_terms


def outputs():
    torch.manual_seed(0)
    model = DPGMMVariationalRecurrentAutoencoder.from_config(replace(preset_config("debug").model, action_dim=2))
    frames = torch.randint(0, 256, (2, 4, 3, 64, 64), dtype=torch.uint8)
    return model(frames, torch.randn(2, 4, 2), model.draws(1, 2, 4))


def test_the_tasks_are_the_sum_of_the_weighted_terms():
    weights = dict(beta=0.3, entropy_weight=0.7, lambda_recon=1.1, lambda_att_dyn=0.4, lambda_gram=0.2)
    losses, tasks = LossAggregator().compute_losses(outputs(), **weights)
    per_dimension = 1 / (3 * 64 * 64)
    terms = {
        "recon_loss": 1.1,
        "mean_error": LossConfig().lambda_mean,
        "kl_z": 0.3 * per_dimension,
        "stick_kl": 0.3 * per_dimension,
        "alpha_kl": 0.3 * per_dimension,
        "cluster_entropy": -0.7 * per_dimension,
        "gram_enc_loss": 0.2,
        "perceiver_recon_loss": 1.0,
        "vq_loss": 1.0,
        "perceiver_ce_loss": 1.0,
        "attention_kl": 0.3,
        "attention_dynamics_loss": 0.4,
        "attention_diversity": 1.0,
    }
    torch.testing.assert_close(sum(tasks), sum(weight * losses[name] for name, weight in terms.items()))
    torch.testing.assert_close(losses["hierarchical_kl"], losses["stick_kl"] + losses["alpha_kl"])
    assert all(loss.ndim == 0 for loss in losses.values())


def test_the_pixel_terms_reach_the_task_with_their_weights():
    made = outputs()
    likelihood = made.likelihood
    only_pixels = dict(lambda_recon=1.1, lambda_gram=0.0, beta=0.0, entropy_weight=0.0)
    losses, tasks = LossAggregator().compute_losses(made, **only_pixels)
    assert not losses["recon_loss"].requires_grad and not losses["mean_error"].requires_grad
    (found,) = torch.autograd.grad(tasks[0], likelihood.features, retain_graph=True)
    parameters = likelihood.parameters()
    x, centre, blocks = (part.flatten(0, 2).flatten(2) for part in (made.pixels, likelihood.centre, parameters))
    log_prob, _ = fused_terms(x, centre, blocks.unflatten(1, (-1, 10)))
    error = (likelihood.expectation() - made.pixels).square()
    loss = -1.1 * log_prob.sum() / error.numel() + LossConfig().lambda_mean * error.mean()
    (expected,) = torch.autograd.grad(loss, likelihood.features)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


def test_gram_loss_is_zero_for_equal_features_and_ignores_scale():
    features = 4 * torch.randn(3, 2, 5, 4, 4).sign()  # each longer than FAINT
    assert elbo.gram_loss(features, 7 * features) < 1e-12
    assert elbo.gram_loss(features, torch.randn(3, 2, 5, 4, 4)) > 1e-3


def test_features_of_rounding_size_hardly_count_in_the_gram_loss():
    """Cells that look as in the mean frame: their direction is rounding, so it must have no pull."""
    faint, other = (1e-5 * torch.randn(1, 1, 8, 4, 4) for _ in range(2))
    faint.requires_grad_()
    loss = elbo.gram_loss(faint, other)
    (gradient,) = torch.autograd.grad(loss, faint)
    assert loss < 1e-15 and gradient.abs().max() < 1e-12


def test_cluster_entropy_lies_between_zero_and_log_k():
    losses, _ = LossAggregator().compute_losses(outputs())
    assert -1e-5 <= losses["cluster_entropy"] <= torch.log(torch.tensor(5.0))


def test_tasks_by_name_and_a_batch_as_a_dict():
    aggregator = LossAggregator(tasks=("perceiver", "reward"))
    assert [task.name for task in aggregator.tasks] == ["perceiver", "reward"]
    torch.manual_seed(0)
    model = DPGMMVariationalRecurrentAutoencoder.from_config(replace(preset_config("debug").model, action_dim=2))
    model.add_heads(aggregator.tasks)
    batch = {
        "observations": torch.zeros(1, 3, 64, 64, 3, dtype=torch.uint8),
        "actions": torch.zeros(1, 3, 2),
        "rewards": torch.ones(1, 3),
        "dones": torch.zeros(1, 3, dtype=torch.bool),
        "terminated": torch.zeros(1, 3, dtype=torch.bool),
    }
    outputs = model(Batch(**batch).frames(), batch["actions"])
    as_dict, as_batch = (aggregator.compute_losses(outputs, batch=b)[0] for b in (batch, Batch(**batch)))
    assert as_dict["total_reward"] == as_batch["total_reward"]


def test_bits_per_dim_is_the_bound_whatever_the_weights():
    """With the weights of the bound the total is the same number in nats."""
    made = outputs()
    others = {"lambda_mean": 0.0, "lambda_gram": 0.0, "entropy_weight": 0.0}
    bound, _ = LossAggregator(LossConfig(**others)).compute_losses(made)
    torch.testing.assert_close(bound["bits_per_dim"] * math.log(2), bound["total_elbo"].detach(), rtol=1e-5, atol=0)
    assert bound["bits_per_dim"] > bound["recon_loss"] / math.log(2)
    other, _ = LossAggregator(LossConfig(free_bits=1e3, precision_weight=3.0)).compute_losses(made, beta=0.1)
    assert other["bits_per_dim"] == bound["bits_per_dim"] and not other["bits_per_dim"].requires_grad


def test_free_bits_change_the_total_and_not_the_kl_that_is_shown():
    made = outputs()
    (plain, _), (free, _) = (LossAggregator(LossConfig(free_bits=n)).compute_losses(made) for n in (0.0, 1e3))
    assert free["kl_z"] == plain["kl_z"] < 1e3
    expected = (1e3 - plain["kl_z"]) / (3 * 64 * 64)
    torch.testing.assert_close(free["total_elbo"] - plain["total_elbo"], expected, rtol=1e-4, atol=1e-5)
