"""The step as a CUDA graph equals the step as written; what cannot be captured is refused."""

from dataclasses import dataclass

import pytest
import torch
from recording import tiny_options, write_recording

from aime_fast.errors import UserError
from aime_fast.training.compile.graph_capture import WARM_UP, copy_tensors
from aime_fast.training.trainer import DMCVBTrainer


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_recording(tmp_path_factory.mktemp("data") / "recording.pt")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_cpu_has_no_graphs(data, tmp_path):
    with pytest.raises(UserError, match="--cuda-graph needs a GPU"):
        DMCVBTrainer(**tiny_options(data, tmp_path / "run", cuda_graph="on"))
    assert not (tmp_path / "run").exists()


@dataclass
class Inner:
    values: torch.Tensor


@dataclass
class Outer:
    inner: Inner
    flags: torch.Tensor
    row: int


def test_inputs_are_copied_into_the_memory_that_the_graph_reads():
    old = Outer(Inner(torch.zeros(2, 3)), torch.zeros(2, dtype=torch.bool), 4)
    new = Outer(Inner(torch.randn(2, 3)), torch.tensor([True, False]), 4)
    addresses = old.inner.values.data_ptr(), old.flags.data_ptr()
    copy_tensors(new, old)
    assert torch.equal(old.inner.values, new.inner.values) and torch.equal(old.flags, new.flags)
    assert (old.inner.values.data_ptr(), old.flags.data_ptr()) == addresses


def test_draws_are_copied_by_name():
    old, new = {"latent": torch.zeros(2, 3)}, {"latent": torch.ones(2, 3)}
    copy_tensors(new, old)
    assert torch.equal(old["latent"], new["latent"])


@pytest.mark.parametrize(
    "other",
    [
        Outer(Inner(torch.zeros(1, 3)), torch.zeros(2, dtype=torch.bool), 4),
        Outer(Inner(torch.zeros(2, 3)), torch.zeros(2, dtype=torch.bool), 5),
    ],
)
def test_inputs_that_the_graph_was_not_made_for_are_refused(other):
    with pytest.raises(ValueError, match="captured step"):
        copy_tensors(other, Outer(Inner(torch.zeros(2, 3)), torch.zeros(2, dtype=torch.bool), 4))


@pytest.mark.gpu
@pytest.mark.parametrize("choice", ["off", "on"])
def test_replayed_steps_equal_the_steps_as_written(data, tmp_path, choice):
    """Losses and weights over steps before and after the capture; SGD, so that rounding stays rounding."""
    ends, losses = [], []
    for graph in ("off", "on"):
        trainer = DMCVBTrainer(
            **tiny_options(
                data,
                tmp_path / f"{graph}",
                optim={"name": "sgd", "lr": 0.005, "warmup_steps": 0},
                compile=choice,
                cuda_graph=graph,
            )
        )
        found = [trainer.step(trainer.step.fetch(step), 0.1 * step).values for step in range(WARM_UP)]
        found = [value["total_elbo"].item() for value in found]
        for step in range(WARM_UP, WARM_UP + 8):
            found.append(trainer.step(trainer.step.fetch(step), 0.1 * step).values["total_elbo"].item())
        losses.append(found)
        ends.append(torch.cat([p.detach().flatten() for p in trainer.engine.module.parameters()]))
        trainer.close()
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
def test_a_step_with_deepspeed_is_not_captured(data, tmp_path):
    with pytest.raises(UserError, match="without DeepSpeed"):
        DMCVBTrainer(**tiny_options(data, tmp_path / "run", cuda_graph="on", ds_config="zero2"))
