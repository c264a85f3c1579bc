"""What a linear probe reads of the simulator's positions from a perfect view of the bodies: a yardstick for z.

    python -m benchmarks.horizon.readable SHARDS [--stride 5]

SHARDS is a folder that `aime-fast collect` wrote. In place of z stands where the camera sees each body and how it is
turned, without any error. A probe is linear and the view is not, so it may read a joint badly from a perfect view:
the angle between two links, where both turn freely. A z that holds such an angle itself can do better.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aime_fast.commands.shared import count
from aime_fast.data.collect.simulation import Simulation
from aime_fast.data.shards.manifest import load_manifest
from aime_fast.data.shards.states import KeptStates, read_states
from aime_fast.errors import exit_on_user_error
from aime_fast.evaluation.probe import probe_r2

from .privileged import numbers_of, simulation_of


def views(
    simulation: Simulation, kept: KeptStates, numbers: list[int], stride: int
) -> tuple[Tensor, list[str], Tensor]:
    """Of every `stride`-th frame the bodies in the camera's view [N, P], the positions' names, and these [N, Q]."""
    names: list[str] = []
    seen, wanted = [], []
    for number in numbers:
        states = kept.of(number)[::stride]
        seen.append(simulation.bodies(number, states).reshape(len(states), -1))
        names, values = kept.layout.seen_positions(states)
        wanted.append(values)
    return torch.from_numpy(np.concatenate(seen)), names, torch.from_numpy(np.concatenate(wanted))


def main() -> None:
    """Print R2 on held-out frames of each position, and the mean."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.horizon.readable", description=__doc__)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--stride", type=count, default=5)
    asked = parser.parse_args()
    folder = asked.shards
    kept = read_states(folder, load_manifest(folder))
    simulation, _ = simulation_of(kept)
    (inputs, names, targets), (held_inputs, _, held_targets) = (
        views(simulation, kept, numbers_of(folder, split), asked.stride) for split in ("train", "val")
    )
    scores = probe_r2(inputs, targets, held_inputs, held_targets)
    print(f"{folder.name}: R2 on {len(held_inputs)} held-out frames, read linearly from a perfect view of the bodies")
    for name, score in zip(names, scores.tolist(), strict=True):
        print(f"{name:20} {score:6.2f}")
    print(f"{'mean':20} {float(scores.nanmean()):6.2f}")


if __name__ == "__main__":
    sys.exit(exit_on_user_error(main))
