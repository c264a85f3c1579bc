"""Which implementation of an operator runs: by device, by `AIME_KERNELS`, and on CUDA by a measurement made once.

    AIME_KERNELS=reference  plain PyTorch everywhere
    AIME_KERNELS=triton     the Triton kernel on CUDA, or a ValueError that says why this call has none
    AIME_KERNELS=auto       (default) on CUDA the faster of kernel and compiled reference, else the reference

A tensor's device decides, never whether triton can be imported. On a CPU the reference runs; the one exception is
triton's interpreter, for tests: AIME_KERNELS=triton together with TRITON_INTERPRET=1.
"""

import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Mode = Literal["reference", "triton", "auto"]
Route = Literal["reference", "compiled", "triton"]
Trials = Callable[[], Mapping[Route, Callable[[], Any]]]
_ROUNDS = 20


class Choice(NamedTuple):
    """The outcome of one measurement."""

    route: Route
    milliseconds: dict[str, float]
    """Median time of every candidate."""


_choices: dict[str, Choice] = {}
"""By card, op, shape class and versions: what the cache file holds."""
_known: dict[tuple[str, int | None, tuple[int, ...]], Route] = {}
"""The same for this process alone, in a form that a compiler can look up."""
_compiled_references: dict[str, Callable[..., Any]] = {}
_file_read = False


def kernel_mode() -> Mode:
    """The mode that `AIME_KERNELS` asks for. Raises ValueError for a word that is none."""
    word = os.environ.get("AIME_KERNELS", "auto")
    if word == "reference":
        return "reference"
    if word == "triton":
        return "triton"
    if word != "auto":
        raise ValueError(f"AIME_KERNELS is {word!r}; use reference, triton or auto")
    return "auto"


def interpreting() -> bool:
    """True when triton runs kernels in its interpreter, which works on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def kernels_possible(device: torch.device) -> bool:
    """Whether a kernel may run on tensors of this device; False sends a call to the reference at no further cost."""
    mode = kernel_mode()
    if device.type == "cuda":
        return mode != "reference"
    return device.type == "cpu" and mode == "triton" and interpreting()


def route(op: str, device: torch.device, obstacle: str | None, shape_class: tuple[int, ...], trials: Trials) -> Route:
    """The implementation for one call on a device for which `kernels_possible`.

    obstacle: why the kernel cannot take these inputs, None when it can. shape_class: what the timing depends on.
    trials: makes inputs of that class and returns a thunk for each candidate; called at most once a class.
    """
    forced = kernel_mode() == "triton"
    if obstacle is not None:
        if forced:
            raise ValueError(f"{op}: no kernel for this call: {obstacle}; AIME_KERNELS=auto takes the reference")
        return "reference"
    if forced:
        return "triton"
    known = _known.get((op, device.index, shape_class))
    if known is not None:
        return known
    if torch.compiler.is_compiling():
        return "reference"
    return _measured(op, device, shape_class, trials)


def _measured(op: str, device: torch.device, shape_class: tuple[int, ...], trials: Trials) -> Route:
    """The fastest candidate of (GPU, op, shape class, versions): known, read from the cache file, or timed now.

    Nothing can be timed while a caller is being compiled or a graph is captured: there a class that this process has
    not met takes the reference, which the caller's compiler fuses. One eager call beforehand settles it.
    """
    key = "|".join([_card(device), op, "x".join(map(str, shape_class)), _versions()])
    _read_file()
    if key not in _choices:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return "reference"
        times = {name: _median_milliseconds(trial, device) for name, trial in trials().items()}
        _choices[key] = Choice(min(times, key=lambda name: times[name]), {str(name): t for name, t in times.items()})
        _write_file()
    _known[op, device.index, shape_class] = _choices[key].route
    return _choices[key].route


def report() -> list[str]:
    """One line for the mode, and one for every choice made so far on any card: route and all medians."""
    _read_file()
    lines = [f"AIME_KERNELS={kernel_mode()}" + ("" if torch.cuda.is_available() else " (no CUDA device: reference)")]
    for key, choice in sorted(_choices.items()):
        times = ", ".join(f"{name} {milliseconds:.3f} ms" for name, milliseconds in choice.milliseconds.items())
        lines.append(f"{key}: {choice.route} ({times})")
    return lines


def implementation(
    op: str,
    plain: Callable[..., Any],
    kernel: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    obstacle: str | None,
    shape_class: tuple[int, ...],
    differentiable: int,
) -> Callable[..., Any]:
    """What to call on `inputs`: `plain`, compiled `plain` or `kernel`, each of which takes them all.

    A measurement is of forward and backward, with gradients of the first `differentiable` inputs.
    """

    def step(function: Callable[..., Any], leaves: list[Tensor]) -> None:
        with torch.enable_grad():
            out = function(*leaves)
            if differentiable:
                parts = [out] if isinstance(out, Tensor) else list(out)
                torch.autograd.grad(torch.stack([part.sum() for part in parts]).sum(), leaves[:differentiable])

    def trials() -> Mapping[Route, Callable[[], Any]]:
        leaves = [tensor.detach().clone().requires_grad_(i < differentiable) for i, tensor in enumerate(inputs)]
        return {
            "compiled": lambda: step(_compiled(op, plain), leaves),
            "triton": lambda: step(kernel, leaves),
        }

    found = route(op, inputs[0].device, obstacle, shape_class, trials)
    return _compiled(op, plain) if found == "compiled" else kernel if found == "triton" else plain


def float_obstacle(*tensors: Tensor) -> str | None:
    """Why tensors do not share one device and one of float32 and float64; None when they do."""
    first = tensors[0]
    if any(tensor.device != first.device for tensor in tensors):
        return f"tensors on {sorted({str(tensor.device) for tensor in tensors})}"
    if any(tensor.dtype != first.dtype for tensor in tensors) or first.dtype not in (torch.float32, torch.float64):
        return f"dtypes {sorted({str(tensor.dtype) for tensor in tensors})}, built for one of float32 and float64"
    return None


def size_class(size: int) -> int:
    """The power of two that is not below `size`: calls of about one size share a measurement."""
    return 1 << max(size - 1, 0).bit_length()


def cache_file() -> Path:
    """Where choices outlive the process."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aime_kernels" / "choices.json"


def _compiled(op: str, plain: Callable[..., Any]) -> Callable[..., Any]:
    """The reference through `torch.compile`; inside a caller that is being compiled, the reference itself."""
    if torch.compiler.is_compiling():
        return plain
    if op not in _compiled_references:
        _compiled_references[op] = torch.compile(plain)
    return _compiled_references[op]


def _median_milliseconds(trial: Callable[[], Any], device: torch.device) -> float:
    """Median of a few rounds, after three that compile and warm up."""
    if device.type != "cuda":
        trial()
        start = time.perf_counter()
        trial()
        return 1e3 * (time.perf_counter() - start)
    times = []
    with torch.cuda.device(device):
        for round_ in range(3 + _ROUNDS):
            start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start_event.record()
            trial()
            end_event.record()
            end_event.synchronize()
            if round_ >= 3:
                times.append(start_event.elapsed_time(end_event))
    return statistics.median(times)


def _card(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _versions() -> str:
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = "none"
    return f"torch {torch.__version__}, triton {triton}"


def _read_file() -> None:
    global _file_read
    if _file_read:
        return
    _file_read = True
    # A file that is missing or damaged costs a measurement, nothing else.
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        for key, fields in json.loads(cache_file().read_text()).items():
            _choices.setdefault(key, Choice(*fields))


def _write_file() -> None:
    # A home that cannot be written keeps the choice in this process only. Ranks may write at once: the last one wins.
    with contextlib.suppress(OSError):
        cache_file().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=cache_file().parent, delete=False) as file:
            json.dump(_choices, file, indent=1)
        os.replace(file.name, cache_file())
