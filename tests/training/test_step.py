"""One batch's way: keyed draws and rows, accumulation, and no wait for the device."""

import pytest
import torch
from recording import tiny_options, write_recording
from torch.utils._python_dispatch import TorchDispatchMode

from aime_fast.config import preset_config
from aime_fast.training.step import noise_key
from aime_fast.training.trainer import DMCVBTrainer


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_recording(tmp_path_factory.mktemp("data") / "recording.pt")


def trainer_of(data, tmp_path, **changes):
    return DMCVBTrainer(**tiny_options(data, tmp_path / "run", **changes))


class Reads(TorchDispatchMode):
    """Counts the operator that brings one number to the host: behind `.item()`, `bool()` and implicit conversions."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_no_step_waits_for_the_device(data, tmp_path, monkeypatch):
    trainer = trainer_of(data, tmp_path)
    trainer.engine.set_lr(1e-4)
    trainer.step(trainer.step.fetch(0), 0.5)  # lazy initialisation, if any, happens here
    inputs = trainer.step.fetch(1)
    waits = []

    def refuse(name, original):
        def wrapped(*arguments, **options):
            waits.append(name)
            return original(*arguments, **options)

        return wrapped

    for name in ("item", "cpu", "tolist", "numpy", "__bool__", "__float__", "__int__", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, refuse(name, getattr(torch.Tensor, name)))
    with Reads() as reads:
        trainer.engine.set_lr(2e-4)
        result = trainer.step(inputs, 0.6)
    monkeypatch.undo()
    assert waits == []
    assert reads.count == 0
    assert bool(result.finite)
    assert all(value.ndim == 0 and not value.requires_grad for value in result.values.values())


def test_micro_batches_add_up_to_the_batch(data, tmp_path):
    """Two rounds of two windows take the same step as one of four, up to rounding and the batch's own statistics."""
    loader = {"batch_size": 4, "sequence_length": 4, "windows_per_epoch": 6}
    whole, parts = (
        DMCVBTrainer(
            **tiny_options(
                data,
                tmp_path / f"accumulation-{rounds}",
                loader=loader,
                objectives={"entropy_weight": 0.0},
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
    for name in ("observations", "actions", "rewards", "dones"):
        joined = torch.cat([getattr(part.batch, name) for part in parts])
        assert torch.equal(joined, getattr(whole.batch, name))
    assert torch.equal(torch.cat([part.noise.latent for part in parts]), whole.noise.latent)
    assert [part.noise.first_row for part in parts] == [0, 2]


def test_draws_differ_between_steps_and_seeds():
    keys = {noise_key(seed, step) for seed in range(20) for step in (0, 1, 2**31, 2**32 - 1)}
    assert len(keys) == 80


def test_every_micro_batch_needs_a_row(data, tmp_path):
    with pytest.raises(Exception, match="batch_size"):
        trainer_of(data, tmp_path, optim={"accumulation": 3})
    assert preset_config("debug").optim.accumulation == 1
