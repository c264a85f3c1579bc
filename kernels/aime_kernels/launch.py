"""How a kernel is launched: with a fixed choice, on the device of its data."""

import contextlib
from typing import NamedTuple

import torch
from torch import Tensor


class Launch(NamedTuple):
    """What is fixed about a launch before any size is known."""

    block: int
    """Elements, rows or pixels of one program; each kernel says which."""
    warps: int
    fusion_from: int | None
    """The compute capability (80 for sm_80) from which on a product and a sum may round once. None: never, because a
    formula depends on both roundings."""

    def options(self, capability: int) -> dict[str, int | bool]:
        """Options of a launch and of `triton.compile`."""
        fusion = self.fusion_from is not None and capability >= self.fusion_from
        return {"num_warps": self.warps, "enable_fp_fusion": fusion}


def capability_of(device: torch.device) -> int:
    """Such as 90 for an H100; on a CPU, which means the interpreter, 80."""
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def on_device_of(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device: make it the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
