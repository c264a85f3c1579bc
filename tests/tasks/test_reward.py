"""The reward task: its numbers, its gradient, and a short training on the recorded sample."""

import math

import pytest
import torch

from aime_fast.commands.main import main
from aime_fast.reporting.metrics_log import read_metrics
from aime_fast.tasks.reward import LIMIT, Reward, bins, symexp, symlog, two_hot
from aime_fast.training.trainer import DMCVBTrainer

TASKS = ["elbo", "perceiver", "predictive", "reward"]


def test_two_hot_and_symlog_lose_nothing():
    rewards = torch.tensor([0.0, 1.0, -1.0, 0.3, 1e-3, -250.0, 1e6])
    weights = two_hot(symlog(rewards))
    assert ((weights > 0).sum(-1) <= 2).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(7), rtol=0, atol=1e-4)
    torch.testing.assert_close(symexp(weights @ bins(rewards)), rewards, rtol=2e-4, atol=1e-4)
    assert two_hot(torch.tensor(9e9))[-1] == 1 and symlog(torch.tensor(math.e - 1)) == pytest.approx(1) and LIMIT == 20


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    out = tmp_path_factory.mktemp("reward") / "run"
    trainer = DMCVBTrainer(preset="debug", steps=30, tasks=TASKS, out=str(out))
    trainer.fit()
    return trainer


def test_the_error_falls(trainer):
    losses = [row["reward_loss"] for row in read_metrics(trainer.folder.path) if row["split"] == "train"]
    assert losses[-1] < 0.8 * losses[0]


def test_its_gradient_reaches_the_shared_parts(trainer):
    inputs = trainer.step.fetch(0)
    outputs = trainer.engine.module(inputs.batch.frames(), inputs.batch.actions, inputs.draws)
    total = trainer.aggregator.compute_losses(outputs, batch=inputs.batch)[1][-1]
    parts = ("heads.reward.", "posterior.", "trunk.", "dynamics.")
    chosen = [[p for name, p in trainer.engine.module.named_parameters() if name.startswith(part)] for part in parts]
    for parameters in chosen:
        gradients = torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)
        assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


def test_it_reads_imagined_states_and_evaluate_prints_its_error(trainer, capsys):
    batch = trainer.step.fetch(0).batch
    state = trainer.engine.module.eval().observe(batch.frames()[:, :5], batch.actions[:, :5])
    read = Reward().predictions(
        trainer.engine.module.heads["reward"](trainer.engine.module.imagine(state, batch.actions[:, 4:7]))
    )
    assert read["reward"].shape == read["continuation"].shape == (len(batch), 3)
    assert main(["evaluate", str(trainer.folder.path), "--horizon", "2"]) == 0
    assert "reward, best constant, RMSE" in capsys.readouterr().out
