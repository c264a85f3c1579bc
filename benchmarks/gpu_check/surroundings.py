"""The variables that jobs run with: where they import from, where they keep compiled code, which devices they see."""

import os
from pathlib import Path

from gpu_check import ROOT
from gpu_check.packages import unpacked

PACKAGES = "GPU_CHECK_PACKAGES"
"""Variable that names a folder of further packages: wheels, or installed packages."""


class Mistake(Exception):
    """A mistake of the user: one line, exit code 2."""


def surroundings(folder: Path, device: str) -> tuple[dict[str, str], list[str]]:
    """Variables of jobs that may write into `folder`, and the wheels that could not be installed.

    Compiled code is kept in `folder`, so that every check starts cold, unless the variables of torch and Triton say
    otherwise. `Mistake` if the folder of packages does not exist.
    """
    paths, bad = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "benchmarks")], []
    if given := os.environ.get(PACKAGES):
        if not Path(given).is_dir():
            raise Mistake(f"{PACKAGES}={given}: no such folder; give it a folder of wheels or of installed packages")
        packages, bad = unpacked(Path(given).resolve(), folder / "packages")
        paths.append(str(packages))
    if inherited := os.environ.get("PYTHONPATH"):
        paths.append(inherited)
    caches = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"), "TRITON_CACHE_DIR": str(folder / "triton")}
    # One thread: on a busy machine several wait for one another.
    on_cpu = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"} if device == "cpu" else {}
    own = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", "TMPDIR": str(folder)}
    return {**caches, **os.environ, **own, **on_cpu}, bad
