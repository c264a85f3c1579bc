"""Validation is a filtering pass: it samples the posterior and adds no noise of training."""

from dataclasses import replace

import torch

from aime_fast.config import preset_config
from aime_fast.data.batch import Batch
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder as WorldModel
from aime_fast.tasks.aggregator import LossAggregator
from aime_fast.training.engines.host_group import HostGroup
from aime_fast.training.validation import validate


def batches(number=2):
    generator = torch.Generator().manual_seed(0)
    zeros = torch.zeros(2, 4)
    for _ in range(number):
        frames = torch.randint(0, 256, (2, 4, 64, 64, 3), dtype=torch.uint8, generator=generator)
        yield Batch(frames, torch.randn(2, 4, 2, generator=generator), zeros, zeros.bool(), zeros.bool())


def validated(latent_noise, seed=0):
    torch.manual_seed(0)
    sizes = replace(preset_config("debug").model, action_dim=2, latent_noise=latent_noise)
    means, _ = validate(WorldModel.from_config(sizes), LossAggregator(), batches(), 1.0, seed, HostGroup(0, 1))
    return means


def test_the_noise_of_training_does_not_change_validation():
    assert validated(latent_noise=0.0) == validated(latent_noise=100.0)


def test_the_posterior_is_sampled_with_the_seed():
    one, same, other = validated(0.3, 0), validated(0.3, 0), validated(0.3, 1)
    assert one == same and one["kl_z"] != other["kl_z"]
    assert one["psnr"] == other["psnr"]  # of the posterior's mean
