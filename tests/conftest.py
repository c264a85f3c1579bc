"""One thread, one seed, this checkout, and no dependence on a card or on what memory happened to hold.

A card is hidden from the tests, so they are the same on every machine. `pytest -m gpu` leaves it visible and runs the
tests that need one.
"""

import os
import random
import re
import signal
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import measuring
import numpy as np
import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).parents[1]
torch.set_num_threads(1)

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None, max_examples=25)
settings.load_profile("repeatable")


def wants_card(expression):
    """Whether the expression of `-m` asks for tests marked `gpu`."""
    return re.search(r"(?<!not )\bgpu\b", expression) is not None


def pytest_configure(config):
    """Before anything counts the cards. Processes that tests start inherit the environment."""
    if not wants_card(config.option.markexpr):
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    # This checkout, installed or not; the path of this process is in pyproject.toml.
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = dict.fromkeys([str(ROOT), str(ROOT / "kernels"), *filter(None, inherited)])
    os.environ["PYTHONPATH"] = os.pathsep.join(path)
    # A job in the background begins with SIGINT ignored; what is tested here is what a user's Ctrl-C does.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """What `-n auto` means: a worker on each core, at most eight; one process for the tests of a card."""
    return 0 if wants_card(config.option.markexpr) else min(8, len(os.sched_getaffinity(0)))


def pytest_collection_modifyitems(items):
    """Begin with the files marked `long`; skip `gpu` tests that need more cards than are visible, and say so."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
    cards = torch.cuda.device_count()
    for item in items:
        if marker := item.get_closest_marker("gpu"):
            needed = marker.kwargs.get("cards", 1)
            if cards < needed:
                reason = "needs a GPU" if needed == 1 else f"needs {needed} GPUs"
                item.add_marker(pytest.mark.skip(reason=reason))
            # What a card's libraries warn of depends on the machine.
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(autouse=True)
def seeds():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def poisoned_empty(request):
    """Fill what `torch.empty` returns with NaN (or the largest integer), so that reading it unwritten fails a test.

    Not on a card: there the same switch chooses other algorithms than a run uses.
    """
    if request.node.get_closest_marker("gpu"):
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture
def peak_bytes():
    """Measures a call: the most memory allocated on the CPU at one time in it, beyond what was there before."""
    return measuring.peak_bytes
