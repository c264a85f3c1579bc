"""How a kernel is launched: with a fixed choice for every GPU architecture, on the device of its data."""

import contextlib
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Launch(NamedTuple):
    """What is fixed about a launch before any size is known."""

    block: int
    """Elements, rows or pixels of one program; each kernel says which."""
    warps: int
    fp_fusion: bool
    """Whether a product and a sum may round once. Off where a formula depends on both roundings."""

    def options(self) -> dict[str, int | bool]:
        """Options of a launch and of `triton.compile`."""
        return {"num_warps": self.warps, "enable_fp_fusion": self.fp_fusion}


Launches = Mapping[int, Launch]
"""By the compute capability (80 for sm_80) from which on an entry holds, up to the next one."""


def launch_at(launches: Launches, capability: int) -> Launch:
    """The entry of the newest architecture that is not newer than `capability`, else the oldest."""
    return launches[max((known for known in launches if known <= capability), default=min(launches))]


def launch_for(launches: Launches, device: torch.device) -> Launch:
    """The entry for a device; on a CPU, which means the interpreter, the oldest."""
    if device.type != "cuda":
        return launches[min(launches)]
    major, minor = torch.cuda.get_device_capability(device)
    return launch_at(launches, 10 * major + minor)


def on_device_of(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device: make it the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
