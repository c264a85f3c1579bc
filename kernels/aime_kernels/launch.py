"""How a kernel is launched: a fixed choice for every architecture, on the device of its data."""

import contextlib
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Launch(NamedTuple):
    """What is fixed about a launch before any size is known."""

    block: int
    """Elements, rows or pixels of one program: the kernel says which."""
    warps: int
    fp_fusion: bool
    """Whether a product and a sum may round once; off where a formula lives off how it rounds."""

    def options(self) -> dict[str, int | bool]:
        """Options of a launch and of `triton.compile`."""
        return {"num_warps": self.warps, "enable_fp_fusion": self.fp_fusion}


def launch_for(table: Mapping[int, Launch], device: torch.device) -> Launch:
    """The entry of the newest architecture (80, 86, 90) that is not newer than the device's; the oldest on a CPU."""
    if device.type != "cuda":
        return table[min(table)]
    major, minor = torch.cuda.get_device_capability(device)
    return table[max((known for known in table if known <= 10 * major + minor), default=min(table))]


def on_device_of(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device: make it the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
