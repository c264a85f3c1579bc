"""Compiles kernels for GPUs that need not be there, and reads from their machine code what they would use.

`python tests/kernels/ahead_of_time.py` writes the table, `benchmarks/results/aot.json`. Deterministic for one version
of triton, so a test compares the file with what it finds.
"""

import json
import os
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ARCHITECTURES = (80, 86, 90)
SHARED_LIMIT = {80: 163 * 1024, 86: 99 * 1024, 90: 227 * 1024}
TABLE = Path(__file__).parents[2] / "benchmarks" / "results" / "aot.json"


@dataclass
class Specimen:
    """A kernel at one size, as it is launched on aligned tensors."""

    name: str
    kernel: Any
    signature: dict[str, str]
    """Type of every argument that is not a constant, in order."""
    constants: dict[str, Any]
    launch: Any
    """The kernel's own `Launch`."""
    registers: int = 128
    """Limit: 128 lets two programs of 8 warps share a multiprocessor."""
    wide_share: float = 0.7
    """Of the bytes loaded from global memory, the part that 16-byte instructions must carry."""
    overrides: dict[str, Any] = field(default_factory=dict)


@dataclass
class Resources:
    kernel: str
    architecture: int
    registers: int
    spilled: int
    """Instructions that move registers to or from local memory, and bytes of stack."""
    shared: int
    warps: int
    fp_fusion: bool
    loads: dict[str, int]
    """Global load instructions by their width in bits."""

    @property
    def wide_share(self) -> float:
        carried = {width: int(width) * count for width, count in self.loads.items()}
        return carried.get("128", 0) / sum(carried.values())

    def row(self) -> dict[str, Any]:
        return {**vars(self), "wide_share": round(self.wide_share, 3)}


def compile_for(specimen: Specimen, architecture: int) -> Resources:
    """Pointers and integers are declared multiples of 16, as the launcher finds them on aligned tensors."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    launch = specimen.launch
    constants = {name: value(launch) if callable(value) else value for name, value in specimen.constants.items()}
    names = list(specimen.kernel.arg_names)
    signature = {name: specimen.signature.get(name, "constexpr") for name in names}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in specimen.signature}
    options = {**launch.options(architecture), **specimen.overrides}
    with tempfile.TemporaryDirectory() as folder:
        before = os.environ.get("TRITON_CACHE_DIR")
        os.environ["TRITON_CACHE_DIR"] = folder  # never a binary of another day
        try:
            source = ASTSource(specimen.kernel, signature, constants, attributes)
            compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
        finally:
            os.environ.pop("TRITON_CACHE_DIR") if before is None else os.environ.update(TRITON_CACHE_DIR=before)
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
        code = _output(tools / "nvdisasm", "-c", cubin)
        usage = _output(tools / "cuobjdump", "-res-usage", cubin)
    found = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    return Resources(
        kernel=specimen.name,
        architecture=architecture,
        registers=found["REG"],
        spilled=len(re.findall(r"\b(?:LDL|STL)\b", code)) + found["STACK"] + found["LOCAL"],
        shared=compiled.metadata.shared,
        warps=compiled.metadata.num_warps,
        fp_fusion=compiled.metadata.enable_fp_fusion,
        loads=global_loads(code),
    )


def global_loads(code: str) -> dict[str, int]:
    """Number of global load instructions in a disassembly by width in bits."""
    widths: Counter[str] = Counter()
    for suffixes in re.findall(r"\bLDG(?:STS)?((?:\.\w+)*)", code):
        small = re.search(r"\.[US](8|16)\b", suffixes)
        large = re.search(r"\.(64|128)\b", suffixes)
        widths[small[1] if small else large[1] if large else "32"] += 1
    return dict(sorted(widths.items(), key=lambda item: int(item[0])))


def complaints(found: Resources, specimen: Specimen) -> list[str]:
    """Every gate that a kernel does not pass."""
    wrong = []
    if found.spilled:
        wrong.append(f"spills: {found.spilled}")
    if found.registers > specimen.registers:
        wrong.append(f"registers: {found.registers} > {specimen.registers}")
    if found.shared >= SHARED_LIMIT[found.architecture]:
        wrong.append(f"shared memory: {found.shared} bytes")
    if found.wide_share < specimen.wide_share:
        wrong.append(f"wide loads: {found.wide_share:.2f} < {specimen.wide_share}")
    return wrong


def _output(*command: object) -> str:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    from specimens import SPECIMENS

    rows = [compile_for(specimen, sm).row() for specimen in SPECIMENS.values() for sm in ARCHITECTURES]
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    TABLE.write_text("[\n" + ",\n".join(" " + json.dumps(row) for row in rows) + "\n]\n")
