"""The probes, one function per check. Each runs alone in a process, and imports what it needs inside.

A probe returns a `Result` or raises.
"""

import ctypes
import os
import shutil
import time
from pathlib import Path

from aime_fast.doctor.checks import Result, ok, warning

GB = 1e9
CONTROL_GROUP = Path("/sys/fs/cgroup")
STALE_SECONDS = 600
"""A build of an extension takes a minute or two. A lock that is older belongs to a build that has died."""
RUNS_GB, SHM_GB, MEMORY_GB = (1.0, 10.0), (0.0, 1.0), (1.0, 4.0)
"""Sizes below which training cannot start, and below which there is a warning."""


def torch() -> Result:
    """A product and its gradient on the CPU and on every GPU that torch lists."""
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    for device in ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]:
        weight = torch.ones(8, 8, device=device, requires_grad=True)
        (weight @ weight).sum().backward()
        if weight.grad is None or weight.grad.sum().item() != 2 * 8**3:
            raise RuntimeError(f"torch {torch.__version__} computes wrong numbers on {device}")
    found = f"{torch.__version__}, {build}, {torch.get_num_threads()} threads"
    if torch.version.cuda is None and driver_version():
        fix = "install torch with CUDA: make clean train"
        return warning(f"{found}, but there is an NVIDIA driver", fix)
    return ok(found)


def cuda() -> Result:
    """The NVIDIA driver and the cards that torch can use."""
    driver = driver_version()
    if driver is None:
        return warning("no NVIDIA driver", "none needed to train on the CPU")
    import torch

    if torch.version.cuda is None:
        return warning(f"driver for CUDA {driver}, torch without CUDA", "make clean train")
    if not torch.cuda.is_available():
        fix = f"update the driver to one for CUDA {torch.version.cuda}, or check CUDA_VISIBLE_DEVICES"
        return warning(f"driver for CUDA {driver}, but torch finds no card", fix)
    cards = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    names = ", ".join(f"{card.name} ({card.total_memory / GB:.0f} GB)" for card in cards)
    return ok(f"driver for CUDA {driver}: {names}")


def driver_version() -> str | None:
    """The newest CUDA that the NVIDIA driver supports, such as `13.0`; None without a working driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def triton() -> Result:
    """Triton, and whether there is a GPU to compile for."""
    import triton

    active = any(backend.driver.is_active() for backend in triton.backends.backends.values())
    return ok(f"{triton.__version__}, {'compiles for the GPU here' if active else 'no GPU to compile for'}")


def kernels() -> Result:
    """The mode of `AIME_KERNELS`, and the implementation of each operator on this machine."""
    from aime_kernels.dispatch import report

    return ok("; ".join(report()))


def native() -> Result:
    """Whether the C++ pixel likelihood runs on this CPU. The first call builds it."""
    from aime_kernels.dispatch import kernel_mode
    from aime_kernels.logistic_mixture.native import build_obstacle

    if kernel_mode() == "reference":
        return ok("AIME_KERNELS=reference: the pixel likelihood runs as torch operators")
    reason = build_obstacle()
    if reason is None:
        return ok("the pixel likelihood runs as C++")
    return warning("on a CPU the pixel likelihood runs as torch operators, in four times the time", reason)


def deepspeed() -> Result:
    """DeepSpeed and its accelerator."""
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    return ok(f"{deepspeed.__version__}, accelerator {get_accelerator().device_name()}")


def extension_locks() -> Result:
    """Locks left by dead builds of DeepSpeed's extensions; the next build would wait for them forever."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "torch_extensions"
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR", default))
    # A build folder is <extension>/ or <python and CUDA>/<extension>/.
    locks = [lock for depth in ("*/lock", "*/*/lock") for lock in sorted(folder.glob(depth))]
    stale = [lock for lock in locks if time.time() - lock.stat().st_mtime > STALE_SECONDS]
    if stale:
        rest = f" and {len(stale) - 1} more" if len(stale) > 1 else ""
        return warning(f"stale lock {stale[0]}{rest}", f"rm {' '.join(map(str, stale))}")
    return ok(f"{len(locks)} running in {folder}" if locks else f"no stale lock in {folder}")


def dali() -> Result:
    """A pipeline of one operator on the CPU."""
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
    return ok(f"{dali.__version__}, a pipeline runs on the CPU")


def runs_folder() -> Result:
    """Whether `runs/`, the default place of runs, is writable, and its free space."""
    folder = next(path for path in (Path.cwd() / "runs", Path.cwd()) if path.is_dir())
    if not os.access(folder, os.W_OK | os.X_OK):
        return Result("", "failed", f"{folder} cannot be written", "start in another folder or name one with --out")
    free = shutil.disk_usage(folder).free / GB
    return _judge(free, RUNS_GB, "free space, or name another disk with --out", f" in {folder}")


def shared_memory() -> Result:
    """Free space in /dev/shm, which loader processes and NCCL use to pass data."""
    return _judge(shutil.disk_usage("/dev/shm").free / GB, SHM_GB, "in a container: docker run --shm-size=8g")


def memory() -> Result:
    """Free memory of the machine, or of this control group if that is less."""
    import psutil

    free = psutil.virtual_memory().available
    try:
        limit, used = (int((CONTROL_GROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, limit - used)
    except (OSError, ValueError):  # no control group of version 2, or one without a limit ("max")
        pass
    return _judge(free / GB, MEMORY_GB, "end other programs, or train with --preset debug")


def _judge(free: float, needed: tuple[float, float], fix: str, where: str = "") -> Result:
    """`free` GB, with `fix` below the second of the sizes `needed`; below the first one training cannot work."""
    least, comfortable = needed
    found = f"{free:.1f} GB free{where}"
    if free >= comfortable:
        return ok(found)
    return Result("", "warning" if free >= least else "failed", found, fix)
