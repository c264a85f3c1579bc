"""Portable state: optimiser state and consensus direction by parameter name, for any engine and number of ranks.

    optimizer.exp_avg/decoder.out.weight@4096    entries 4096... of the flattened parameter, as one flat tensor
    optimizer.step/decoder.out.weight            one number for the whole parameter, 0-d
    direction/decoder.out.weight@0               part of the consensus direction d in the same way

A reader takes the entries it needs from whichever files hold them. Other entries of a file belong to its rank alone.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from torch import Tensor, nn

from aime_fast.balancing.layouts.cut import Cut
from aime_fast.balancing.vectors import Vector
from aime_fast.errors import UserError
from aime_fast.training.engines.engine import Engine

OPTIMIZER, DIRECTION = "optimizer.", "direction"
STEP = "step"
"""The only state of torch's optimisers that is one number per parameter."""


class _Slice(Protocol):
    """A stored flat tensor, read in parts."""

    def get_shape(self) -> list[int]: ...

    def __getitem__(self, index: "slice[int, int, None]") -> Tensor: ...


def portable_state(engine: Engine[nn.Module], direction: Vector | None) -> dict[str, Tensor]:
    """This rank's part of the optimiser's state and of d (views where possible); no d if `direction` is None."""
    names, found = engine.parameter_names, dict[str, Tensor]()
    for parameter, cut in engine.optimizer_cuts() if engine.sharded or engine.rank == 0 else ():
        for slot, value in engine.optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                found |= _cut(OPTIMIZER + slot, value, cut, names)
    for value, cut in zip(direction or [], engine.row_cuts() if direction else [], strict=True):
        if value is not None:
            found |= _cut(DIRECTION, value, cut, names)
    return found


def _cut(slot: str, value: Tensor, cut: Cut, names: Sequence[str]) -> dict[str, Tensor]:
    if slot == OPTIMIZER + STEP:
        return {f"{slot}/{names[piece.index]}": value for piece in cut.pieces}
    flat = value.detach().reshape(-1)
    return {f"{slot}/{names[p.index]}@{p.start}": flat[p.at : p.at + p.numel] for p in cut.pieces}


class StoredState:
    """What all ranks of an earlier run wrote as `portable_state`."""

    def __init__(self, files: Sequence[Path]) -> None:
        """`files` are safetensors that together hold every entry."""
        self._files = [safe_open(path, "pt") for path in files]
        self._parts: dict[str, list[tuple[int, _Slice]]] = defaultdict(list)
        self._step: Tensor | None = None
        for file in self._files:
            for key in file.keys():  # noqa: SIM118 (not a dict)
                name, _, start = key.partition("@")
                if start:
                    self._parts[name].append((int(start), file.get_slice(key)))
                elif name.startswith(OPTIMIZER):
                    self._step = file.get_tensor(key)  # all parameters are stepped or skipped together

    def own(self, index: int, prefix: str) -> dict[str, Tensor]:
        """Entries of the file at `index` whose names start with `prefix`, which is cut off."""
        file = self._files[index]
        names = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118 (not a dict)
        return {name.removeprefix(prefix): file.get_tensor(name) for name in names}

    def restore(self, engine: Engine[nn.Module]) -> Vector:
        """Load the engine's optimiser state; return d in the layout of the engine's task gradients."""
        names = engine.parameter_names
        moments = {key.partition("/")[0].removeprefix(OPTIMIZER) for key in self._parts if key.startswith(OPTIMIZER)}
        engine.optimizer.state.clear()
        for parameter, cut in engine.optimizer_cuts():
            # Strides as the optimiser would have made them: its fused step reads memory, not indices.
            state = {m: self._fill(torch.zeros_like(parameter), OPTIMIZER + m, cut, names) for m in moments}
            if self._step is not None:
                state[STEP] = self._step.to(parameter.device, copy=True)
            if state:
                engine.optimizer.state[parameter] = state
        return [
            self._fill(torch.zeros(cut.shape), DIRECTION, cut, names)
            if any(f"{DIRECTION}/{names[piece.index]}" in self._parts for piece in cut.pieces)
            else None
            for cut in engine.row_cuts()
        ]

    def _fill(self, tensor: Tensor, slot: str, cut: Cut, names: Sequence[str]) -> Tensor:
        """Fill `tensor` with every piece's entries; a parameter without stored entries is zero."""
        flat = torch.zeros(tensor.numel())
        for piece in cut.pieces:
            key, found = f"{slot}/{names[piece.index]}", 0
            for start, stored in self._parts.get(key, []):
                low = max(start, piece.start)
                high = min(start + stored.get_shape()[0], piece.start + piece.numel)
                if low < high:
                    at = piece.at + low - piece.start
                    flat[at : at + high - low] = stored[low - start : high - start]
                    found += high - low
            if found != piece.numel and key in self._parts:
                raise UserError(f"the checkpoint has {found} of {piece.numel} entries of {key}; use an earlier one")
        return tensor.copy_(flat.view(tensor.shape))
