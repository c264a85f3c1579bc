"""Nothing that changes while training is missing from a checkpoint: a resumed trainer equals one that never stopped.

Compares every number, string and tensor that can be reached from the trainer, so nobody has to maintain a list.
"""

import random
from dataclasses import fields, is_dataclass

import numpy as np
import pytest
import rich.style  # noqa: F401  the progress line imports it, and its import draws from `random`
import torch
from recording import tiny_options, write_recording

from aime_fast.tasks.aggregator import LossAggregator
from aime_fast.training.checkpoint.state import generator_states
from aime_fast.training.trainer import DMCVBTrainer

NOT_STATE = {"seconds", "notes", "folder", "out", "resume", "newest", "_closing", "_thread", "_writing", "path"}
"""The clock, and what only says where a run lives."""
FOLLOWED = ("aime_fast", "torch.nn", "torch.optim")
PLAIN = (int, float, str, bool, bytes, type(None), torch.Tensor, np.ndarray)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_recording(tmp_path_factory.mktemp("data") / "recording.pt")


def values(thing, path="trainer", seen=None):
    """(path, value) of everything below `thing` that can be compared."""
    seen = set() if seen is None else seen
    if isinstance(thing, PLAIN):
        yield path, thing
        return
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, dict):
        # The optimiser's state is keyed by parameters: their order counts, not their identity.
        inside = [(key if isinstance(key, str) else index, value) for index, (key, value) in enumerate(thing.items())]
    elif isinstance(thing, list | tuple):
        inside = list(enumerate(thing))
    elif is_dataclass(thing) and not isinstance(thing, type):
        inside = [(item.name, getattr(thing, item.name)) for item in fields(thing)]
    elif type(thing).__module__.startswith(FOLLOWED) and hasattr(thing, "__dict__"):
        inside = list(vars(thing).items())
    else:
        return
    for name, value in inside:
        if name not in NOT_STATE:
            yield from values(value, f"{path}.{name}", seen)


def differing(data, folder):
    """Paths that differ between a trainer after six steps and one resumed after three of them."""
    whole = DMCVBTrainer(**tiny_options(data, folder / "whole", steps=9))
    whole.fit(until=6)
    end = generator_states()
    DMCVBTrainer(**tiny_options(data, folder / "parts", steps=9)).fit(until=3)
    torch.rand(7)
    parts = DMCVBTrainer(**tiny_options(data, folder / "parts", steps=9, resume="auto"))
    parts.fit(until=6)
    one, two = dict(values([whole, end])), dict(values([parts, generator_states()]))
    assert len(one) > 500
    return {path for path in one.keys() | two.keys() if not same(one.get(path), two.get(path))}


def same(one, two):
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return one.shape == two.shape and torch.equal(one.nan_to_num(0.5), two.nan_to_num(0.5))
    if isinstance(one, np.ndarray):
        return np.array_equal(one, two)
    return type(one) is type(two) and (one == two or one != one)


def test_a_resumed_trainer_equals_one_that_never_stopped(data, tmp_path):
    """And the generators of `random` and numpy, which a checkpoint does not hold, are not used."""
    others = random.getstate(), str(np.random.get_state())
    assert differing(data, tmp_path) == set()
    assert others == (random.getstate(), str(np.random.get_state()))


def test_state_that_someone_forgets_is_noticed(data, tmp_path, monkeypatch):
    """A counter in the losses that no checkpoint holds."""
    compute = LossAggregator.compute_losses

    def counting(self, *arguments, **options):
        self.calls = getattr(self, "calls", 0) + 1
        return compute(self, *arguments, **options)

    monkeypatch.setattr(LossAggregator, "compute_losses", counting)
    assert {path.rpartition(".")[2] for path in differing(data, tmp_path)} == {"calls"}
