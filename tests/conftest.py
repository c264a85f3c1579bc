"""One thread, one seed, no hidden dependence on a GPU or on what memory happened to hold."""

import os
import random
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import measuring
import numpy as np
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None, max_examples=25)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(items):
    """Skip `gpu` tests where there is no GPU, in words that say what that leaves open."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="not verified on a GPU"))


def pytest_configure():
    """A job in the background begins with SIGINT ignored; what is tested here is what a user's Ctrl-C does."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def seeds():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def poisoned_empty():
    """Fill what `torch.empty` returns with NaN (or the largest integer), so that reading it unwritten fails a test."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture
def peak_bytes():
    """Measures a call: the most memory allocated on the CPU at one time in it, beyond what was there before."""
    return measuring.peak_bytes
