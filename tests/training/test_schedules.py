"""Beta and learning rate against their definitions."""

import math

import pytest

from aime_fast.config import TrainConfig
from aime_fast.config.schema import LossConfig, OptimConfig
from aime_fast.training.schedules import Schedules


def schedules(warmup_steps=10, beta_warmup_steps=40, total_steps=100):
    """Schedules with ten steps an epoch."""
    optim = OptimConfig(lr=2e-4, final_lr_fraction=0.05, warmup_steps=warmup_steps)
    losses = LossConfig(beta_warmup_steps=beta_warmup_steps)
    return Schedules(TrainConfig(steps=total_steps, optim=optim, losses=losses), 10)


def test_beta_rises_linearly_and_stays_at_one():
    beta = [schedules().beta(step) for step in range(100)]
    assert beta[0] == 0.0
    assert beta[20] == pytest.approx(0.5)
    assert all(b == 1.0 for b in beta[40:])
    assert beta == sorted(beta)


def test_beta_is_one_without_a_warm_up():
    assert schedules(beta_warmup_steps=0).beta(0) == 1.0
    assert Schedules(TrainConfig(), 25).beta(0) == 1.0


def test_lr_warms_up_then_falls_to_its_final_fraction():
    lr = [schedules().lr(step) for step in range(101)]
    assert lr[0] == pytest.approx(2e-4 / 10)
    assert lr[:10] == sorted(lr[:10])
    assert lr[10:] == sorted(lr[10:], reverse=True)
    assert lr[50] == pytest.approx(2e-4 * (0.05 + 0.95 * 0.5))
    assert lr[100] == pytest.approx(2e-4 * 0.05)
    assert all(0 < value <= 2e-4 for value in lr)


def test_lr_follows_the_time_only_without_a_number_of_steps():
    timed = schedules(total_steps=None, warmup_steps=0)
    assert timed.lr(7, 0.25) == pytest.approx(2e-4 * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi / 4))))
    assert timed.lr(10**6, 1.5) == pytest.approx(2e-4 * 0.05)
    assert schedules().lr(50, 0.9) == schedules().lr(50, 0.0)


@pytest.mark.parametrize(
    ("steps", "epochs", "expected"), [(None, None, None), (7, None, 7), (None, 3, 75), (60, 3, 60), (80, 3, 75)]
)
def test_the_smaller_limit_ends_the_run(steps, epochs, expected):
    assert Schedules(TrainConfig(steps=steps, epochs=epochs), 25).total_steps == expected


def test_beta_does_not_depend_on_the_size_of_the_data():
    config = TrainConfig(losses=LossConfig(beta_warmup_steps=30))
    of_size = {epoch: [Schedules(config, epoch).beta(step) for step in range(50)] for epoch in (1, 25, 4500)}
    assert of_size[1] == of_size[25] == of_size[4500]
    assert of_size[1][15] == pytest.approx(0.5)
