"""Optimiser state and RGB's direction under the names of parameters: a layout that no engine and no world size owns.

    optimizer.exp_avg/decoder.out.weight@4096    entries 4096... of the flattened parameter, as one flat tensor
    optimizer.step/decoder.out.weight            a number that belongs to the whole parameter, 0-d
    direction/decoder.out.weight@0               the same cut of RGB's d

Whoever reads takes the entries it needs, from as many files as hold some.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from aime_fast.balancing.layouts.layout import Cut
from aime_fast.balancing.vectors import Vector
from aime_fast.errors import UserError

OPTIMIZER, DIRECTION = "optimizer.", "direction"
STEP = "step"
"""The one state of torch's optimisers that a parameter has a single number of."""


def named_state(engine: Any, direction: Vector | None) -> dict[str, Tensor]:
    """This rank's share of the optimiser's state and of d (views where possible); `direction` None leaves d out."""
    if engine.rank and not engine.sharded:
        return {}
    names, found = engine.parameter_names, dict[str, Tensor]()
    for parameter, cut in engine.optimizer_cuts():
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
    """What all ranks of some earlier run wrote as `named_state`, to be cut anew."""

    def __init__(self, files: Sequence[Path]) -> None:
        """`files` are safetensors; together they hold every entry."""
        self._parts: dict[str, list[tuple[int, Any]]] = defaultdict(list)
        self._slots: set[str] = set()
        self._step: Tensor | None = None
        for path in files:
            file = safe_open(path, "pt")
            for key in file.keys():  # noqa: SIM118 (not a dict)
                name, _, start = key.partition("@")
                self._slots.add(name.partition("/")[0])
                if start:
                    self._parts[name].append((int(start), file.get_slice(key)))
                else:
                    self._step = file.get_tensor(key)  # parameters are stepped or skipped all together

    def restore(self, engine: Any) -> Vector:
        """Give the engine's optimiser its state; RGB's direction in the layout of the engine's rows."""
        names = engine.parameter_names
        moments = {slot.removeprefix(OPTIMIZER) for slot in self._slots} - {DIRECTION, STEP}
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
        """`tensor` with every piece's entries; a parameter of which nothing was stored had none that were not zero."""
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
                raise UserError(f"the checkpoint has {found} of {piece.numel} entries of {key}; take an earlier one")
        return tensor.copy_(flat.view(tensor.shape))
