"""The machine: card, versions, and how fast it copies and multiplies."""

import os
import platform
import shutil
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from gpu_check.worker import Emit

GB = 1e9


def run(emit: Emit, device: str) -> None:
    """Emit what the machine is, then a rate at a time: one that fails does not lose the others."""
    emit(
        {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": _version("triton"),
            "deepspeed": _version("deepspeed"),
            "cores": os.cpu_count(),
            "compiler": shutil.which("g++") or shutil.which("gcc") or "none: Triton and torch.compile need one",
        }
    )
    if device == "cuda":
        card, (free, total) = torch.cuda.get_device_properties(0), torch.cuda.mem_get_info()
        emit(
            {
                "card": card.name,
                "capability": f"{card.major}.{card.minor}",
                "driver": _driver(),
                "cuda": torch.version.cuda,
                "cudnn": torch.backends.cudnn.version(),
                "multiprocessors": card.multi_processor_count,
                "memory_gb": total / GB,
                "free_gb": free / GB,
            }
        )
    emit({"copy_gb_per_s": copied_bytes_a_second(device) / GB})
    for name, dtype, tf32 in (
        ("bf16", torch.bfloat16, True),
        ("tf32", torch.float32, True),
        ("fp32", torch.float32, False),
    ):
        if device == "cuda" or name == "fp32":
            emit({f"{name}_tflop_per_s": product_flops(device, dtype, tf32) / 1e12})


def copied_bytes_a_second(device: str) -> float:
    """Bytes read and written a second by a copy within the device's memory."""
    source = torch.ones(2**30 if device == "cuda" else 2**25, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / seconds(lambda: target.copy_(source), device)


def product_flops(device: str, dtype: torch.dtype, tf32: bool) -> float:
    """Floating-point operations a second of a product of two square matrices of random numbers."""
    torch.backends.cuda.matmul.allow_tf32 = tf32
    size = 8192 if device == "cuda" else 512
    left, right = torch.randn(2, size, size, device=device).to(dtype)
    return 2 * size**3 / seconds(lambda: left @ right, device)


def seconds(call: Callable[[], object], device: str, calls: int = 10) -> float:
    """Mean seconds of a call, after three of warm-up, with one wait for the device at the end."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(3):
        call()
    wait()
    started = time.perf_counter()
    for _ in range(calls):
        call()
    wait()
    return (time.perf_counter() - started) / calls


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _driver() -> str:
    try:
        words = Path("/proc/driver/nvidia/version").read_text().split()
    except OSError:
        return "unknown"
    return next((word for word in words if word[:3].isdigit() and "." in word), "unknown")
