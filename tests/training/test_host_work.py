"""Nothing in a step makes a tensor of Python numbers or reads one back: on a GPU that would stall the queue.

A CUDA graph cannot be captured around such a call either. The CPU shows the same calls.
"""

import traceback

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from aime_fast import DMCVBTrainer
from aime_fast.balancing.solvers.registry import SOLVERS
from aime_fast.model.priors import PRIORS

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


CASES = [
    *({"model": {"prior": prior}} for prior in PRIORS),
    *({"balancing": {"solver": solver}} for solver in SOLVERS),
    {"balancing": {"groups": "shared"}},
    {"balancing": {"groups": "module"}, "tasks": ("elbo", "perceiver", "predictive", "reward")},
    {"optim": {"accumulation": 2}},
    {"losses": {"free_bits": 1.0, "precision_weight": 1.0}},
]


@pytest.mark.parametrize("options", CASES, ids=str)
def test_a_step_has_no_host_work(options, tmp_path):
    """Forward pass, backward passes, balancing, optimiser and averages, after two steps that make the state."""
    trainer = DMCVBTrainer(preset="debug", steps=8, out=str(tmp_path / "run"), compile="off", **options)
    for step in range(2):
        trainer.step(trainer.step.fetch(step), 0.5)
    inputs, beta = trainer.step.fetch(2), torch.tensor(0.5)
    with HostWork() as watched:
        trainer.step(inputs, beta)
    trainer.close()
    assert watched.found == set()
