"""One batch's way: keyed draws and rows, accumulation, and no wait for the device."""

import json
import weakref
from contextlib import contextmanager

import pytest
import torch
from recording import tiny_options, write_recording
from torch.utils._python_dispatch import TorchDispatchMode

from aime_fast.config import preset_config
from aime_fast.data.backends import open_backend
from aime_fast.errors import UserError
from aime_fast.tasks.registry import TASKS
from aime_fast.training.step import draw_key
from aime_fast.training.trainer import DMCVBTrainer


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_recording(tmp_path_factory.mktemp("data") / "recording.pt")


def trainer_of(data, tmp_path, **changes):
    return DMCVBTrainer(**tiny_options(data, tmp_path / "run", **changes))


READING = {torch.ops.aten._local_scalar_dense.default: "operator", torch.ops.aten.bincount.default: "bincount"}
"""Behind `.item()`, `bool()` and implicit conversions; and one that reads the largest entry inside itself on a GPU."""


class Reads(TorchDispatchMode):
    """Lists the operators that bring numbers to the host."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in READING:
            self.seen.append(READING[func])
        return func(*args, **(kwargs or {}))


@contextmanager
def host_reads():
    """A list that fills with what is read on the host inside: a tensor's method by name, or an operator."""
    reads = []

    def noting(name, original):
        def wrapped(*arguments, **options):
            reads.append(name)
            return original(*arguments, **options)

        return wrapped

    names = ("item", "cpu", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__", "nonzero")
    with pytest.MonkeyPatch.context() as patch, Reads() as operators:
        for name in names:
            patch.setattr(torch.Tensor, name, noting(name, getattr(torch.Tensor, name)))
        yield reads
    reads += operators.seen


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # what DeepSpeed imports
@pytest.mark.parametrize("ds_config", [None, "zero2"])
def test_no_step_waits_for_the_device(data, tmp_path, ds_config):
    trainer = trainer_of(data, tmp_path, ds_config=ds_config, tasks=list(TASKS))
    trainer.engine.set_lr(1e-4)
    trainer.step(trainer.step.fetch(0), 0.5)  # lazy initialisation, if any, happens here
    inputs = trainer.step.fetch(1)
    with host_reads() as reads:
        trainer.engine.set_lr(2e-4)
        result = trainer.step(inputs, 0.6)
    trainer.close()
    assert reads == []
    assert bool(result.finite)
    assert all(value.ndim == 0 and not value.requires_grad for value in result.values.values())


READERS = {
    "item": lambda loss: loss.item(),
    "cpu": lambda loss: loss.cpu(),
    "tolist": lambda loss: loss.tolist(),
    "numpy": lambda loss: loss.detach().numpy(),
    "__float__": float,
    "__bool__": bool,
    "__int__": int,
    "nonzero": lambda loss: loss.view(1).nonzero(),
    "operator": lambda loss: torch.zeros(3)[: (loss * 0).long()],
    "bincount": lambda loss: torch.bincount((loss * 0).long().view(1)),
}


@pytest.mark.parametrize("name", READERS)
def test_the_guard_sees_a_read_wherever_it_is(data, tmp_path, monkeypatch, name):
    trainer = trainer_of(data, tmp_path)
    compute = trainer.aggregator.compute_losses

    def reading(outputs, **options):
        losses, tasks = compute(outputs, **options)
        READERS[name](losses["total_elbo"].detach())
        return losses, tasks

    monkeypatch.setattr(trainer.aggregator, "compute_losses", reading)
    inputs = trainer.step.fetch(0)
    with host_reads() as reads:
        trainer.step(inputs, 0.5)
    assert name in reads


def test_micro_batches_add_up_to_the_batch(data, tmp_path):
    """Two rounds of two windows take the same step as one of four, up to rounding and the batch's own statistics."""
    loader = {"batch_size": 4, "sequence_length": 4, "windows_per_epoch": 6}
    whole, parts = (
        DMCVBTrainer(
            **tiny_options(
                data,
                tmp_path / f"accumulation-{rounds}",
                loader=loader,
                losses={"entropy_weight": 0.0},
                optim={"accumulation": rounds, "name": "sgd", "lr": 1e-2},
            )
        )
        for rounds in (1, 2)
    )
    values = []
    for trainer in (whole, parts):
        trainer.engine.set_lr(1e-2)
        values.append(trainer.step(trainer.step.fetch(0), 1.0).values)
    for name in ("recon_loss", "kl_z", "perceiver_loss", "total_predictive"):
        torch.testing.assert_close(values[0][name], values[1][name], rtol=1e-4, atol=1e-5)
    for (name, one), two in zip(
        whole.engine.module.state_dict().items(), parts.engine.module.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_ranks_take_consecutive_rows_of_one_global_batch(data, tmp_path):
    trainer = trainer_of(data, tmp_path, loader={"batch_size": 4, "sequence_length": 4, "windows_per_epoch": 6})
    whole = trainer.step.fetch(5)
    trainer.engine.world_size = 2
    parts = []
    for trainer.engine.rank in (0, 1):
        parts.append(trainer.step.fetch(5))
    for name in ("observations", "actions", "rewards", "dones", "terminated"):
        joined = torch.cat([getattr(part.batch, name) for part in parts])
        assert torch.equal(joined, getattr(whole.batch, name))
    assert torch.equal(torch.cat([part.draws["latent"] for part in parts]), whole.draws["latent"])
    assert [part.draws.first_row for part in parts] == [0, 2]


def test_draws_differ_between_steps_and_seeds():
    keys = {draw_key(seed, step) for seed in range(20) for step in (0, 1, 2**31, 2**32 - 1)}
    assert len(keys) == 80


def test_every_micro_batch_needs_a_row(data, tmp_path):
    with pytest.raises(Exception, match="batch_size"):
        trainer_of(data, tmp_path, optim={"accumulation": 3})
    assert preset_config("debug").optim.accumulation == 1


class Calls(TorchDispatchMode):
    """Counts operator calls, views and all."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def test_operator_calls_of_a_step_are_bounded_and_do_not_grow_with_the_frames(tmp_path):
    """Forward, losses, three backward passes, balancing and AdamW at the sizes of `small`."""
    counts = []
    for frames in (4, 7):
        loader = {"batch_size": 1, "sequence_length": frames}
        trainer = DMCVBTrainer(preset="small", steps=9, loader=loader, out=str(tmp_path / f"{frames}"))
        trainer.step(trainer.step.fetch(0), 0.5)
        inputs = trainer.step.fetch(1)
        with Calls() as calls:
            trainer.step(inputs, 0.5)
        counts.append(calls.count)
    assert counts[0] == counts[1] <= 6000


METRICS = """
decoder_loss mean_error recon_loss stick_kl alpha_kl hierarchical_kl kl_z cluster_entropy gram_enc_loss total_elbo
bits_per_dim effective_components top_component_mass responsibility_entropy usage_entropy
perceiver_recon_loss vq_loss perceiver_ce_loss perplexity perceiver_loss
attention_kl attention_dynamics_loss attention_diversity total_predictive
grad_norm grad_norm_elbo grad_norm_perceiver grad_norm_predictive rgb_cancelled
rgb_angle_elbo rgb_angle_perceiver rgb_angle_predictive rgb_projection_elbo rgb_projection_perceiver
rgb_projection_predictive successive_cosine_elbo successive_cosine_perceiver successive_cosine_predictive
rgb_cosine_elbo_perceiver rgb_cosine_elbo_predictive rgb_cosine_perceiver_predictive
"""


def test_draws_of_two_seeds_differ():
    """A generator on the CPU reads 32 bits of its seed."""
    first = {
        torch.rand(1, generator=torch.Generator().manual_seed(draw_key(seed, step))).item()
        for seed in range(4)
        for step in range(4)
    }
    assert len(first) == 16


def test_metrics_keep_their_names(data, tmp_path):
    trainer = trainer_of(data, tmp_path)
    trainer.engine.set_lr(1e-4)
    assert set(METRICS.split()) <= trainer.step(trainer.step.fetch(0), 0.5).values.keys()


@pytest.mark.parametrize("tasks", [*([name] for name in TASKS), ["predictive", "elbo"], list(TASKS)], ids="-".join)
def test_every_task_alone_and_all_together_train_a_run(data, tmp_path, tasks):
    trainer = trainer_of(data, tmp_path, tasks=tasks, steps=3)
    before = {name: tensor.clone() for name, tensor in trainer.engine.module.state_dict().items()}
    trainer.fit()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {row["split"] for row in rows} == {"train", "val"}
    for row in rows:
        assert "nonfinite" not in row
        assert {name for name in TASKS if TASKS[name].total in row} == set(tasks)
    assert all(f"grad_norm_{task}" in rows[0] for task in tasks)
    changed = {name.split(".")[0] for name, p in trainer.engine.module.named_parameters() if (p != before[name]).any()}
    assert changed, "something was trained"


@pytest.mark.parametrize("task", [name for name in TASKS if TASKS[name].needs_rewards])
def test_rewards_that_a_recording_lacks_are_a_users_mistake(data, tmp_path, monkeypatch, task):
    def without(*arguments):
        backend = open_backend(*arguments)
        backend.has_rewards = False
        return backend

    monkeypatch.setattr("aime_fast.training.components.open_backend", without)
    with pytest.raises(UserError, match=rf"recording.pt has no rewards, which task '{task}' needs"):
        trainer_of(data, tmp_path, tasks=["elbo", task])
    assert not (tmp_path / "run").exists()


def test_outputs_of_a_micro_batch_do_not_outlive_it(data, tmp_path, monkeypatch):
    trainer = trainer_of(data, tmp_path, optim={"accumulation": 2})
    compute, alive = trainer.aggregator.compute_losses, []

    def noting(outputs, **options):
        assert all(earlier() is None for earlier in alive)
        alive.append(weakref.ref(outputs))
        return compute(outputs, **options)

    monkeypatch.setattr(trainer.aggregator, "compute_losses", noting)
    trainer.step(trainer.step.fetch(0), 0.5)
    assert len(alive) == 2
