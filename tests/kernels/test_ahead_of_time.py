"""Kernels compiled for sm_80, sm_86 and sm_90 without a GPU: spills, registers, shared memory, width of their loads."""

import importlib.util
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from ahead_of_time import ARCHITECTURES, TABLE, compile_for, complaints, global_loads

if os.environ.get("TRITON_INTERPRET") == "1" or importlib.util.find_spec("triton") is None:
    pytest.skip("compiles kernels: needs triton, and not its interpreter", allow_module_level=True)

import triton
from specimens import FIRST, SPECIMENS

PINNED = re.search(r"^triton==(\S+)$", (Path(__file__).parents[2] / "constraints.txt").read_text(), re.MULTILINE)[1]
"""The table is of this version of triton: another one allots registers in its own way, within the same limits."""

ALL = [
    pytest.param(name, sm, marks=[] if name in FIRST and sm == 80 else pytest.mark.slow, id=f"{name}-sm_{sm}")
    for name in SPECIMENS
    for sm in ARCHITECTURES
]


@pytest.fixture(scope="module")
def table():
    return {(row["kernel"], row["architecture"]): row for row in json.loads(TABLE.read_text())}


@pytest.mark.parametrize("name, architecture", ALL)
def test_a_kernel_stays_within_its_limits_and_the_table_says_so(name, architecture, table):
    found = compile_for(SPECIMENS[name], architecture)
    assert not complaints(found, SPECIMENS[name])
    if triton.__version__ == PINNED:
        assert found.row() == table[name, architecture]


def test_the_table_lists_every_kernel_and_nothing_else(table):
    assert set(table) == {(name, sm) for name in SPECIMENS for sm in ARCHITECTURES}


def test_the_gates_are_not_lower_for_any_kernel():
    for name, specimen in SPECIMENS.items():
        kind = name.partition("_")[0]
        assert specimen.wide_share == {"rgb": 0.9, "pixel": 0.0}.get(kind, 0.7)


@pytest.mark.parametrize("name", FIRST)
def test_sizes_of_one_compile(name):
    """A launcher makes an integer argument of 1 a constant."""
    specimen = SPECIMENS[name]
    integers = {argument for argument, kind in specimen.signature.items() if kind == "i32"}
    if not integers:
        pytest.skip("no integer arguments")
    signature = {argument: kind for argument, kind in specimen.signature.items() if argument not in integers}
    constants = {**specimen.constants, **dict.fromkeys(integers, 1)}
    assert compile_for(replace(specimen, signature=signature, constants=constants), 90).registers


def test_a_kernel_that_spills_is_caught():
    specimen = SPECIMENS["rgb_gram_fwd 4 vectors float32"]
    found = compile_for(replace(specimen, overrides={"maxnreg": 40}), 80)
    assert any(complaint.startswith("spills") for complaint in complaints(found, specimen))


def test_a_kernel_on_odd_addresses_is_caught():
    specimen = SPECIMENS["rgb_gram_fwd 4 vectors float32"]
    found = compile_for(replace(specimen, constants={**specimen.constants, "ALIGNMENT": 4}), 80)
    assert [complaint.split(":")[0] for complaint in complaints(found, specimen)] == ["wide loads"]


def test_a_kernel_with_too_much_shared_memory_is_caught():
    specimen = SPECIMENS["rgb_gram_fwd 4 vectors float32"]
    found = SimpleNamespace(architecture=86, registers=200, spilled=0, shared=100 * 1024, wide_share=1.0)
    assert [complaint.split(":")[0] for complaint in complaints(found, specimen)] == ["registers", "shared memory"]


def test_widths_are_read_from_the_machine_code():
    code = (
        "LDG.E.128 R4;\n@P0 LDG.E.EL.64.CONSTANT R2;\nLDG.E R1;\nLDG.E.U8.CONSTANT R0;\n"
        "LDGSTS.E.BYPASS.128 [R1];\nLDL R2;"
    )
    assert global_loads(code) == {"8": 1, "32": 1, "64": 1, "128": 2}
