"""Nothing in a step makes a tensor of Python numbers or reads one back: on a GPU that would stall the queue.

A CUDA graph cannot be captured around such a call either. The CPU shows the same calls.
"""

import traceback
from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from aime_fast import DMCVBTrainer
from aime_fast.balancing.layouts.rounded import BLOCK, packed, unpacked
from aime_fast.balancing.solvers.registry import SOLVERS
from aime_fast.evaluation.metrics import evaluating, psnr
from aime_fast.model.priors import PRIORS
from aime_fast.profiling.launches import counted_launches

FROM_THE_HOST = ("lift_fresh",)
TO_THE_HOST = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique")


class HostWork(TorchDispatchMode):
    """Collects the operators that copy between host and device, with the line that calls them."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(name in str(function) for name in (*FROM_THE_HOST, *TO_THE_HOST)):
            ours = [frame for frame in traceback.extract_stack() if "aime_" in frame.filename]
            self.found.add((str(function), f"{ours[-1].filename}:{ours[-1].lineno}" if ours else "not in a file"))
        return function(*args, **(kwargs or {}))


def test_host_work_is_found():
    with HostWork() as watched:
        torch.tensor([1.0, 2.0])[0].item()
    assert {name.split(".")[1] for name, _ in watched.found} == {"lift_fresh", "_local_scalar_dense"}


FEW = {"batch_size": 2, "sequence_length": 4}
CASES = [
    *({"model": {"prior": prior}} for prior in PRIORS),
    *({"balancing": {"solver": solver}} for solver in SOLVERS),
    {"balancing": {"groups": "shared"}},
    {"balancing": {"groups": "module"}, "tasks": ("elbo", "perceiver", "predictive", "reward")},
    {"optim": {"accumulation": 2}},
    {"optim": {"precision": "bf16"}},
    {"losses": {"free_bits": 1.0, "precision_weight": 1.0}},
    {"model": {"likelihood": "gaussian"}},
    {"preset": "small", "loader": FEW},
    {"preset": "paper", "loader": FEW},
]
ROUTES = {"cpu": nullcontext, "cuda": counted_launches}
"""How operators run: as here, or as on a GPU, where kernels are left out and their results are zeros."""
EVALUATED = [*({"model": {"prior": prior}} for prior in PRIORS), {"model": {"likelihood": "gaussian"}}, *CASES[-2:]]


def opened(options, folder):
    return DMCVBTrainer(**({"preset": "debug", "steps": 8, "out": str(folder), "compile": "off"} | options))


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("options", CASES, ids=str)
def test_a_step_has_no_host_work(options, route, tmp_path):
    """Forward pass, backward passes, balancing, optimiser and averages, after two steps that make the state."""
    trainer = opened(options, tmp_path / "run")
    with ROUTES[route]():
        for step in range(2):
            trainer.step(trainer.step.fetch(step), 0.5)
        inputs, beta = trainer.step.fetch(2), torch.tensor(0.5)
        with HostWork() as watched:
            trainer.step(inputs, beta)
    trainer.close()
    assert watched.found == set()


def test_rounding_an_update_has_no_host_work():
    with HostWork() as watched:
        unpacked(packed(torch.randn(3 * BLOCK)), 1)
    assert watched.found == set()


@pytest.mark.parametrize("options", EVALUATED, ids=str)
def test_a_validation_reads_nothing_before_its_end(options, tmp_path):
    """Model, losses and PSNR of held-out windows. The second pass is watched: the first one makes what is kept."""
    trainer = opened(options, tmp_path / "run")
    batch = next(trainer.validation_backend.evaluation_windows(4)).rows(0, 2)
    draws = trainer.model.draws(0, *batch.observations.shape[:2])
    watched = HostWork()
    with evaluating(trainer.model), torch.no_grad():
        for mode in (nullcontext(), watched):
            with mode:
                frames = batch.frames()
                outputs = trainer.model(frames, batch.actions, draws)
                trainer.aggregator.compute_losses(outputs, beta=0.5, batch=batch)
                psnr(trainer.model.reconstruct(outputs), frames)
    trainer.close()
    assert watched.found == set()
