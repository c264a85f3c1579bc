"""The kernels against their references: in triton's interpreter (TRITON_INTERPRET=1), otherwise on a GPU.

One set of tests for both. Without the interpreter every test carries the marker `gpu`, and where there is no GPU it is
skipped as "needs a GPU".
"""

import os
from pathlib import Path

import numpy as np
import pytest

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents and not INTERPRETING:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture
def device():
    return "cpu" if INTERPRETING else "cuda"


@pytest.fixture(autouse=True)
def force_the_kernels(monkeypatch):
    monkeypatch.setenv("AIME_KERNELS", "triton")


@pytest.fixture
def moved_bytes(monkeypatch):
    """Counts the bytes that the unmasked lanes of a call's kernels load and store; in the interpreter only."""
    if not INTERPRETING:
        pytest.skip("bytes are counted in the interpreter")
    from triton.runtime.interpreter import interpreter_builder as builder

    load, store = builder.create_masked_load, builder.create_masked_store
    total = 0

    def count(pointers, mask):
        nonlocal total
        width = pointers.get_element_ty().primitive_bitwidth // 8
        total += width * int(np.broadcast_to(mask.data, pointers.data.shape).sum())

    def counted_load(pointers, mask, *rest):
        count(pointers, mask)
        return load(pointers, mask, *rest)

    def counted_store(pointers, value, mask, *rest):
        count(pointers, mask)
        return store(pointers, value, mask, *rest)

    def measure(call):
        nonlocal total
        total = 0
        with monkeypatch.context() as patch:
            patch.setattr(builder, "create_masked_load", counted_load)
            patch.setattr(builder, "create_masked_store", counted_store)
            call()
        return total

    return measure
