"""What the doctor asks, one function a question; each runs alone in a process that may die of it.

A probe returns a `Finding` or raises; what it imports is imported inside it.
"""

import ctypes
import os
import shutil
import time
from pathlib import Path

from aime_fast.doctor.finding import Finding

GB = 1e9
CONTROL_GROUP = Path("/sys/fs/cgroup")
STALE_SECONDS = 600
"""A build of an extension that holds its lock for longer has died; DeepSpeed's take a minute or two."""
RUNS_GB, SHM_GB, MEMORY_GB = (1.0, 10.0), 1.0, (1.0, 4.0)
"""Room below which training cannot start, and below which it is tight (/dev/shm: tight alone)."""


def torch() -> Finding:
    """A product and its gradient on the CPU and on every GPU that torch sees."""
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    devices = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    for device in devices:
        weight = torch.ones(8, 8, device=device, requires_grad=True)
        (weight @ weight).sum().backward()
        if weight.grad is None or weight.grad.sum().item() != 2 * 8**3:
            raise RuntimeError(f"torch {torch.__version__} computes wrong numbers on {device}")
    found = f"{torch.__version__}, {build}, {torch.get_num_threads()} threads"
    if torch.version.cuda is None and _driver_version():
        return Finding(
            f"{found}, but there is an NVIDIA driver", "install torch with CUDA: make clean train", limits=True
        )
    return Finding(found)


def cuda() -> Finding:
    """The NVIDIA driver and the cards that torch can use."""
    driver = _driver_version()
    if driver is None:
        return Finding("no NVIDIA driver", "none needed to train on the CPU", limits=True)
    import torch

    if torch.version.cuda is None:
        return Finding(f"driver for CUDA {driver}, torch without CUDA", "make clean train", limits=True)
    if not torch.cuda.is_available():
        fix = f"update the driver to one for CUDA {torch.version.cuda}, or show it a card (CUDA_VISIBLE_DEVICES)"
        return Finding(f"driver for CUDA {driver}, but torch sees no card", fix, limits=True)
    cards = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    names = ", ".join(f"{card.name} ({card.total_memory / GB:.0f} GB)" for card in cards)
    return Finding(f"driver for CUDA {driver}: {names}")


def _driver_version() -> str | None:
    """The newest CUDA the NVIDIA driver serves, such as `13.0`; None where there is no driver that starts."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def triton() -> Finding:
    """Triton, and whether it has a card to compile for."""
    import triton

    active = len([name for name, backend in triton.backends.backends.items() if backend.driver.is_active()])
    return Finding(f"{triton.__version__}, {'compiles for the GPU here' if active else 'no GPU to compile for'}")


def kernels() -> Finding:
    """The mode of `AIME_KERNELS`, and which implementation serves each operator on this machine."""
    from aime_kernels.dispatch import report

    return Finding("; ".join(report()))


def native() -> Finding:
    """Whether the pixel likelihood runs in its C++ form on this CPU, which is built now if it never was."""
    from aime_kernels.dispatch import kernel_mode
    from aime_kernels.logistic_mixture.native import build_obstacle

    if kernel_mode() == "reference":
        return Finding("AIME_KERNELS=reference: the pixel likelihood runs as torch operators")
    reason = build_obstacle()
    if reason is None:
        return Finding("the pixel likelihood runs as C++")
    return Finding("on a CPU the pixel likelihood runs as torch operators, in four times the time", reason)


def deepspeed() -> Finding:
    """DeepSpeed and the accelerator it has chosen."""
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    return Finding(f"{deepspeed.__version__}, accelerator {get_accelerator().device_name()}")


def extension_locks() -> Finding:
    """Locks that dead builds of DeepSpeed's extensions have left: the next build would wait for them for ever."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "torch_extensions"
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR", default))
    # Build folders lie at most two deep: <python and CUDA>/<extension>/lock.
    locks = [lock for depth in ("*/lock", "*/*/lock") for lock in sorted(folder.glob(depth))]
    stale = [lock for lock in locks if time.time() - lock.stat().st_mtime > STALE_SECONDS]
    if stale:
        rest = f" and {len(stale) - 1} more" if len(stale) > 1 else ""
        return Finding(f"stale lock {stale[0]}{rest}", f"rm {' '.join(map(str, stale))}", limits=True)
    return Finding(f"{len(locks)} running in {folder}" if locks else f"no stale lock in {folder}")


def dali() -> Finding:
    """A pipeline of one operator, on the CPU."""
    import numpy as np
    from nvidia import dali
    from nvidia.dali import fn

    @dali.pipeline_def(batch_size=2, num_threads=1, device_id=None)
    def constant() -> dali.data_node.DataNode:
        return fn.full(7, shape=3)

    pipeline = constant()
    pipeline.build()
    (values,) = pipeline.run()
    if not np.array_equal(values.as_array(), [[7, 7, 7]] * 2):
        raise RuntimeError(f"DALI {dali.__version__} returns wrong numbers")
    return Finding(f"{dali.__version__}, a pipeline runs on the CPU")


def runs_folder() -> Finding:
    """Whether `runs/`, where a run goes by default, can be written, and the room there."""
    folder = next(path for path in (Path.cwd() / "runs", Path.cwd()) if path.is_dir())
    free = shutil.disk_usage(folder).free / GB
    found = f"{free:.1f} GB free in {folder}"
    if not os.access(folder, os.W_OK | os.X_OK):
        return Finding(f"{folder} cannot be written", "start in another folder or name one with --out")
    return _judge(found, free, RUNS_GB, "make room, or name another disk with --out")


def shared_memory() -> Finding:
    """Room in /dev/shm, through which loader processes and NCCL hand over their data."""
    free = shutil.disk_usage("/dev/shm").free / GB
    return _judge(f"{free:.1f} GB free", free, (0.0, SHM_GB), "in a container: docker run --shm-size=8g")


def memory() -> Finding:
    """Memory that is free for this process: the machine's, or what its control group leaves."""
    import psutil

    free = psutil.virtual_memory().available
    try:
        limit, used = (int((CONTROL_GROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, limit - used)
    except (OSError, ValueError):  # no control group of version 2, or one without a limit ("max")
        pass
    return _judge(f"{free / GB:.1f} GB free", free / GB, MEMORY_GB, "end other programs, or train with --preset debug")


def _judge(found: str, have: float, needed: tuple[float, float], fix: str) -> Finding:
    """`found`, with `fix` where less than the second of two sizes is there, and as unusable below the first."""
    least, comfortable = needed
    return Finding(found, fix if have < comfortable else "", limits=have >= least)
