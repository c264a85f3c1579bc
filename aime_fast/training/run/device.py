"""What the first lines of a run say about its device, and what a run says when the memory of a GPU ends."""

import os
import re
from pathlib import Path

import torch

from aime_fast.config import TrainConfig
from aime_fast.doctor import probes
from aime_fast.errors import UserError
from aime_kernels.dispatch import kernel_mode, obstacle_of_device

GB = 1e9
BUSY_SHARE, CONTEXT = 0.1, 2 * GB
"""A GPU of which other programs hold more than this part is busy; the context of this program counts as another's."""


def describe(device: torch.device, precision: str, step: str) -> list[str]:
    """Device, precision, form of the step and kernels in one line, then one for each thing that is not as it should be.

    step: how the step runs, such as "step as written".
    """
    if device.type != "cuda":
        threads, surprise = torch.get_num_threads(), why_no_gpu()
        first = f"CPU, {threads} thread{'s' * (threads > 1)}: {precision}, {step}"
        return [first, surprise] if surprise else [first]
    obstacle = "AIME_KERNELS=reference" if kernel_mode() == "reference" else obstacle_of_device(device)
    kernels = f"no Triton kernels ({obstacle})" if obstacle else "Triton kernels"
    card = torch.cuda.get_device_properties(device)
    first, busy = f"{card.name}, {card.total_memory / GB:.0f} GB: {precision}, {step}, {kernels}", others_memory(device)
    return [first, busy] if busy else [first]


def others_memory(device: torch.device) -> str | None:
    """The line for a GPU that other programs use, or None."""
    free, total = torch.cuda.mem_get_info(device)
    others = total - free - torch.cuda.memory_reserved(device)
    if others < max(BUSY_SHARE * total, CONTEXT):
        return None
    return (
        f"the GPU is busy: other programs hold {others / GB:.1f} of its {total / GB:.1f} GB, {free / GB:.1f} GB are "
        "free; steps take longer than alone, and nvidia-smi lists the programs"
    )


def why_no_gpu() -> str | None:
    """The line for a run on the CPU of a machine that has an NVIDIA driver, or None."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if hidden or probes.driver_version() is None:
        return None
    found = probes.cuda()
    return f"training on the CPU, although this machine has an NVIDIA driver: {found.found}; {found.fix}"


def memory_ended(error: BaseException) -> bool:
    """Whether an error says that a GPU has no memory left: torch's own, or one of CUDA, Triton or NCCL."""
    said = str(error).lower()
    of_cuda = "out of memory" in said and any(library in said for library in ("cuda", "nccl"))
    return isinstance(error, torch.OutOfMemoryError) or of_cuda or "alloc_failed" in said


def room_on(device: torch.device) -> int | None:
    """Bytes of a GPU that this process has or may take; None for a CPU."""
    if device.type != "cuda":
        return None
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)


def out_of_memory(
    error: BaseException, phase: str, config: TrainConfig, windows: int, saved: Path | None, room: int | None = None
) -> UserError:
    """The error for a run whose GPU has no memory left: what was needed, what fits by the plan, and how to go on.

    phase: what the run was doing. windows: those of one micro-batch of one process. saved: the newest checkpoint. room:
    bytes that this process can have; None makes no plan.
    """
    needed = re.search(r"Tried to allocate ([\d.]+ \w+)", str(error))
    capacity = re.search(r"total capacity of ([\d.]+ \w+) of which ([\d.]+ \w+) is free", str(error))
    what = f"{needed[1]} more needed" if needed else "more needed"
    what += f", {capacity[2]} of {capacity[1]} free" if capacity else ""
    batch, rounds = config.loader.batch_size, config.optim.accumulation
    flags, helps = "", []
    if phase == "validation":
        helps = [f"validation takes {batch} windows at a time: a smaller --loader.batch-size needs a new run"]
    elif windows == 1:
        helps = ["one window at a time is too much: a new run needs a shorter --loader.sequence-length"]
    else:
        fitting, reason = _smaller(config, windows, room)
        if fitting:
            factor = windows // fitting
            flags = f"--optim.accumulation {rounds * factor}"
            helps = [
                f"a micro-batch of {fitting} instead of {windows} windows {reason}: {flags} keeps the batch of "
                f"{batch}, and --loader.batch-size {batch // factor} in a new run makes it smaller"
            ]
        else:
            helps = [reason]
    if config.optim.precision != "bf16" and phase != "validation":
        helps.append("--optim.precision bf16 needs less")
    if config.cuda_graph != "off":
        helps.append("--cuda-graph off needs less beside the step")
    again = " ".join(filter(None, [f"--resume {saved.parent.parent}", flags, "--override"])) if saved else ""
    kept = f"go on from {saved.name} with {again}" if saved else "no checkpoint had been written yet"
    return UserError(f"out of GPU memory in {phase} ({what}); {'; '.join(helps)}; {kept}")


def _smaller(config: TrainConfig, windows: int, room: int | None) -> tuple[int, str]:
    """A micro-batch smaller than `windows`, and why; 0 if even one window does not fit `room` bytes by the plan."""
    if room is None:
        fitting = max(part for part in range(1, windows) if windows % part == 0)
        return fitting, f"takes about 1/{windows // fitting} of the memory"
    from aime_fast.planning.memory import fitting_windows  # half a second, and runs rarely need it

    ranks = config.loader.batch_size // (windows * config.optim.accumulation)
    if fitting := fitting_windows(config, windows, ranks, room):
        return fitting, f"fits {room / GB:.1f} GB by the plan"
    return 0, (
        f"not even one window fits {room / GB:.1f} GB by the plan: a new run needs a shorter --loader.sequence-length "
        "or a smaller --preset"
    )
