"""The mean over ranks of each task's gradient is that of the whole batch, where a term is not a mean over rows too."""

from dataclasses import replace

import pytest
import torch

from aime_fast.config import LossConfig, preset_config
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder
from aime_fast.tasks import elbo
from aime_fast.tasks.aggregator import LossAggregator

WINDOWS, FRAMES, ACTIONS = 4, 3, 6
HALVES = slice(0, 2), slice(2, 4)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return DPGMMVariationalRecurrentAutoencoder.from_config(replace(preset_config("debug").model, action_dim=ACTIONS))


def compute(model, config, rows=slice(0, WINDOWS)):
    """Losses by name and tasks of these windows; those of the second half are darker than those of the first."""
    generator = torch.Generator().manual_seed(1)
    light = torch.tensor([2.0, 2.0, 0.2, 0.2])[:, None, None, None, None]
    frames = torch.rand(WINDOWS, FRAMES, 3, 64, 64, generator=generator) * light - 1
    actions = torch.randn(WINDOWS, FRAMES, ACTIONS, generator=generator)
    noise = model.draws(0, WINDOWS, FRAMES).rows(rows.start, rows.stop)
    return LossAggregator(config).compute_losses(model(frames[rows], actions[rows], noise), beta=1.0)


def gradients(model, tasks):
    parameters = [p for p in model.parameters() if p.requires_grad]
    rows = [torch.autograd.grad(task, parameters, retain_graph=True, allow_unused=True) for task in tasks]
    return [torch.cat([gradient.flatten() for gradient in row if gradient is not None]) for row in rows]


def on_two_ranks(monkeypatch, model, config):
    """Gradients of each half: a first pass tells what each would send, a second has the mean of both."""
    sent, found = ([], []), []
    for rows, own in zip(HALVES, sent, strict=True):
        with monkeypatch.context() as patch, torch.no_grad():
            patch.setattr(elbo, "global_mean", lambda local, own=own: own.append(local) or local)
            compute(model, config, rows)
    for rows in HALVES:
        means = iter([(a + b) / 2 for a, b in zip(*sent, strict=True)])
        with monkeypatch.context() as patch:
            patch.setattr(elbo, "global_mean", lambda local, means=means: local + (next(means) - local).detach())
            found.append(gradients(model, compute(model, config, rows)[1]))
    return found


@pytest.mark.parametrize("options", [{"entropy_weight": 1e4}, {"precision_weight": 3.0}, {"free_bits": "between"}])
def test_the_mean_of_two_halves_is_the_whole(monkeypatch, model, options):
    if "free_bits" in options:
        with torch.no_grad():
            low, high = sorted(compute(model, LossConfig(), rows)[0]["kl_z"].item() for rows in HALVES)
        options = {"free_bits": low + 0.25 * (high - low)}
    config = LossConfig(**options)
    whole = gradients(model, compute(model, config)[1])
    for a, b, wanted in zip(*on_two_ranks(monkeypatch, model, config), whole, strict=True):
        assert (0.5 * (a + b) - wanted).norm() <= 1e-5 * wanted.norm()
