"""How a kernel is launched: with a fixed choice, on the device of its data."""

from typing import Any, NamedTuple

import torch


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

    def start(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        """Launch a kernel on the device of its first argument, a tensor. An empty grid launches nothing."""
        data = arguments[0]
        # A tensor on a CPU is for the interpreter.
        major, minor = torch.cuda.get_device_capability(data.device) if data.is_cuda else (8, 0)
        if 0 not in grid:
            with torch.cuda.device_of(data):
                kernel[grid](*arguments, **constants, **self.options(10 * major + minor))
