"""How flat tensors consist of entries of parameters."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Piece:
    """`numel` entries of one flattened parameter, and where they lie in a flat tensor. What no piece covers is zero."""

    index: int
    """Position of the parameter in the list of all trainable parameters."""
    start: int
    """The first of its entries."""
    at: int
    """Where that entry lies in the flat tensor."""
    numel: int


@dataclass(frozen=True)
class Cut:
    """How one tensor consists of entries of parameters, when it is flattened."""

    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    @classmethod
    def whole(cls, index: int, parameter: Tensor) -> "Cut":
        """A tensor that is laid out as the parameter at this position."""
        return cls(tuple(parameter.shape), (Piece(index, 0, 0, parameter.numel()),))
