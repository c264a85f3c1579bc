"""Linear probes: how well ridge regression reads the simulator's positions and velocities from z_t and from h_t."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from aime_fast.data.shards.states import KeptStates
from aime_fast.evaluation.linear import PCA, choose_ridge, r2
from aime_fast.evaluation.metrics import evaluating
from aime_fast.evaluation.windows import Windows
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder as WorldModel

STILL = 0.1
"""A coordinate is left out if its standard deviation on held-out frames is below this part of that in training."""
SETTLED = 4
"""Frames at the start of a window that are left out: h_t has seen too little of it."""


@dataclass(frozen=True)
class Probe:
    """R2 on held-out frames by coordinate. `r2["z"]["position"]["rootz"]`.

    It is nan for a coordinate that hardly moves there (`STILL`): R2 compares errors with that movement.
    """

    r2: dict[str, dict[str, dict[str, float]]]

    def mean(self, source: str, kind: str) -> float:
        """Mean over the coordinates of a kind; nan if there are none."""
        values = [value for value in self.r2[source][kind].values() if not np.isnan(value)]
        return float(np.mean(values)) if values else np.nan


def probe(
    model: WorldModel,
    train: Windows,
    held_out: Windows,
    kept: KeptStates,
    train_ids: list[int],
    held_ids: list[int],
    pca: PCA | None = None,
) -> Probe:
    """Fit on the frames of `train`, judge on those of `held_out`; `*_ids` number their episodes among all recorded.

    z_t is the posterior's mean and h_t the LSTM's output after frame t and a_t, both of a deterministic pass. The codes
    of `pca` for frame t, and for frames t-1 and t, show what a linear code without a model holds. The model keeps its
    mode.
    """
    (inputs, targets), (held_inputs, held_targets) = (
        (read_states_of(model, windows, pca), simulator_states(windows, ids, kept))
        for windows, ids in ((train, train_ids), (held_out, held_ids))
    )
    found: dict[str, dict[str, dict[str, float]]] = {}
    for source, values in inputs.items():
        found[source] = {}
        for kind, (names, wanted) in targets.items():
            scores = probe_r2(values, wanted, held_inputs[source], held_targets[kind][1])
            found[source][kind] = dict(zip(names, scores.tolist(), strict=True))
    return Probe(found)


def probe_r2(inputs: Tensor, targets: Tensor, held_inputs: Tensor, held_targets: Tensor) -> Tensor:
    """R2 of each column of `held_targets` [M, Q], by ridge regression of `targets` [N, Q] on `inputs` [N, P].

    nan for a column that hardly moves in `held_targets` (`STILL`).
    """
    deviation = targets.std(0, correction=0)
    scale = torch.where(deviation > 0, deviation, 1.0)  # so that columns of any unit count alike for the penalty
    found = r2(choose_ridge(inputs, targets / scale)(held_inputs.double()) * scale, held_targets)
    return found.masked_fill(held_targets.std(0, correction=0) < STILL * deviation, torch.nan)


@torch.no_grad()
def read_states_of(model: WorldModel, windows: Windows, pca: PCA | None) -> dict[str, Tensor]:
    """What is probed, of the settled frames of all windows, end to end: float64 [N, D] by name."""
    parts: dict[str, list[Tensor]] = {}
    with evaluating(model) as device:
        for _, batch in windows.parts():
            on_device = batch.to(device)
            outputs = model(on_device.frames(), on_device.actions)
            read = {"z": outputs.posterior_mean, "h": outputs.hidden_states}
            if pca:
                codes = pca.encode(batch.frames().flatten(2))
                read |= {"PCA codes": codes, "PCA codes of two frames": torch.cat([codes.roll(1, 1), codes], -1)}
            for name, x in read.items():
                parts.setdefault(name, []).append(x[:, SETTLED:].flatten(0, 1).double().cpu())
    return {name: torch.cat(tensors) for name, tensors in parts.items()}


def simulator_states(windows: Windows, ids: list[int], kept: KeptStates) -> dict[str, tuple[list[str], Tensor]]:
    """Names and values float64 [N, Q] of the settled frames' positions and velocities, in the order of the windows."""
    spans = [kept.of(ids[e])[t + SETTLED : t + windows.length] for e, t in windows.places.tolist()]
    states = np.concatenate(spans)
    layout = kept.layout
    kinds = {"position": layout.seen_positions(states), "velocity": layout.moving_velocities(states)}
    return {kind: (names, torch.from_numpy(values)) for kind, (names, values) in kinds.items()}
