"""Linear combinations of long vectors: the balanced update and the next direction in one pass."""

from aime_kernels.rgb_combine.op import rgb_combine

__all__ = ["rgb_combine"]
