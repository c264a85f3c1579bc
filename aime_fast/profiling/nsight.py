"""Runs a program under Nsight Systems or Nsight Compute, from the first marked step to the last."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from aime_fast.errors import UserError
from aime_fast.profiling.phases import MARKED

GET = {
    "nsys": "install Nsight Systems: Debian's package nsight-systems (non-free), or NVIDIA's",
    "ncu": "install Nsight Compute: Debian's package nsight-compute (non-free), or NVIDIA's",
}
IMPORTER, DEBIAN = Path("host-linux-x64/QdstrmImporter"), Path("/usr/lib/nsight-systems")
"""What makes a report of a recording, and where Debian keeps it, apart from nsys."""
KERNELS = 300
"""Kernels that Nsight Compute measures: it repeats each of them several times."""


def under_nsys(program: Sequence[str], folder: Path, on_card: bool) -> str:
    """Record `program` into `folder/nsys.nsys-rep`; the tables of `nsys stats` of it.

    Without a card, NVTX ranges are all that Nsight Systems records. `UserError` where it is not installed or fails.
    """
    nsys = _found("nsys")
    report = folder / "nsys.nsys-rep"
    trace = "nvtx,cuda" if on_card else "nvtx"
    _run(
        "nsys",
        [
            *(nsys, "profile", f"--trace={trace}", "--sample=none", "--cpuctxsw=none"),
            *("--capture-range=nvtx", f"--nvtx-capture={MARKED}", "--capture-range-end=stop"),
            # Else only a name that has been registered with NVTX begins a capture; torch registers none.
            "--env-var=NSYS_NVTX_PROFILER_REGISTER_ONLY=0",
            *(f"--output={report.with_suffix('')}", *program),
        ],
    )
    _converted(report, nsys)
    if not report.is_file():
        raise UserError(f"nsys wrote no report to {report}; its version may lack --capture-range=nvtx, update it")
    # Lists the names with exit code 1. They have changed: nvtxsum is nvtx_sum since 2023.
    known = subprocess.run([nsys, "stats", "--help-reports"], capture_output=True, text=True).stdout
    wanted = [("nvtx_sum", "nvtxsum"), *([("cuda_gpu_kern_sum", "gpukernsum")] if on_card else [])]
    reports = ",".join(new if new in known else old for new, old in wanted)
    said = _run("nsys", [nsys, "stats", f"--report={reports}", str(report)])
    if "forward" not in said and "replay" not in said:
        version = _run("nsys", [nsys, "--version"]).strip()
        raise UserError(f"nsys recorded no phase ({version}); one before 2023 needs nvtx 0.2.11 or older")
    # Before its tables nsys draws a bar of its progress.
    return said[said.index(" ** ") :]


def _converted(report: Path, nsys: str) -> None:
    """Make the report of what was recorded, where nsys did not find its importer and left the raw stream."""
    stream = report.with_suffix(".qdstrm")
    folders = [Path(nsys).resolve().parents[1] / IMPORTER.parent, DEBIAN / IMPORTER.parent]
    importer = next((path for path in (folder / IMPORTER.name for folder in folders) if path.is_file()), None)
    if stream.is_file() and not report.is_file() and importer:
        _run("QdstrmImporter", [str(importer), f"--input-file={stream}", f"--output-file={report}"])


def under_ncu(program: Sequence[str], folder: Path) -> str:
    """Measure the first `KERNELS` kernels of the marked steps of `program` into `folder/ncu.ncu-rep`; its tables.

    `UserError` where Nsight Compute is not installed or fails.
    """
    ncu, report = _found("ncu"), folder / "ncu.ncu-rep"
    _run(
        "ncu",
        [
            *(ncu, "--target-processes=all", "--nvtx", "--nvtx-include", MARKED, f"--launch-count={KERNELS}"),
            *("--export", str(report.with_suffix("")), *program),
        ],
    )
    return _run("ncu", [ncu, "--import", str(report), "--print-summary=per-kernel"])


def _found(tool: str) -> str:
    path = shutil.which(tool)
    if path is None:
        raise UserError(f"{tool} is not installed; {GET[tool]} (docs/profiling.md)")
    return path


def _run(tool: str, command: Sequence[str]) -> str:
    """Standard output of a command; its last words as a `UserError` if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise UserError(f"{tool} ended with exit code {done.returncode}: {said.removeprefix('error: ')}")
    return done.stdout
