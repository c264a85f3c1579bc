"""What a learner finds that is given the simulator's state: a bound for models that see pixels.

    python -m benchmarks.horizon.privileged SHARDS [--steps 6000] [--width 256] [--networks 2] [--stride 50]

SHARDS is a folder that `aime-fast collect` wrote. Networks learn the next state from state and action, on the training
episodes. From the last frame of each held-out context they follow the actions, and the simulator draws what they
predict. So nothing is lost by seeing or drawing: what is missing is what the episodes do not tell of the dynamics.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from aime_fast.commands.shared import count
from aime_fast.data.collect.collector_pool import make_simulation
from aime_fast.data.collect.simulation import Choices, Simulation
from aime_fast.data.shards.manifest import load_manifest
from aime_fast.data.shards.states import KeptStates, StateLayout, read_states
from aime_fast.data.store import open_store
from aime_fast.doctor import choose_graphics
from aime_fast.errors import UserError, exit_on_user_error
from aime_fast.evaluation.evaluation import Questions
from aime_fast.evaluation.intervals import mean_over
from aime_fast.evaluation.metrics import psnr
from aime_fast.evaluation.share import REFERENCE, frame_distance, other_futures, possible_loss, share_of_possible
from aime_fast.evaluation.windows import Windows, make_windows

from .table import HORIZONS

BATCH, RATE = 256, 1e-3


def seen(states: np.ndarray, layout: StateLayout) -> np.ndarray:
    """What is learnt of an episode's states [N, n], [N, p]: positions, angles as sine and cosine, and velocities.

    Of a position that no frame shows, such as the distance walked, it is the change since the frame before.
    """
    columns = []
    for name, column in zip(layout.positions, states[:, 1:].T, strict=False):
        if name in layout.angles:
            columns += [np.sin(column), np.cos(column)]
        elif name in layout.unseen:
            columns.append(np.diff(column, prepend=2 * column[:1] - column[1:2]))
        else:
            columns.append(column)
    return np.stack([*columns, *layout.moving_velocities(states)[1].T], -1)


def as_states(values: np.ndarray, start: np.ndarray, layout: StateLayout) -> np.ndarray:
    """States [h, n] with the positions of `values` [h, p], that follow the state `start` [n]; the inverse of `seen`."""
    states = np.repeat(start[None], len(values), 0)
    columns = iter(values.T)
    for place, name in enumerate(layout.positions, 1):
        column = next(columns)
        if name in layout.angles:
            column = np.arctan2(column, next(columns))
        elif name in layout.unseen:
            column = start[place] + np.cumsum(column)
        states[:, place] = column
    return states


class Learner:
    """An ensemble that predicts how standardised values [N, p] change, from them and the actions [N, A]."""

    def __init__(self, episodes: list[Tensor], actions: list[Tensor], networks: int, width: int) -> None:
        every = torch.cat(episodes)
        self.mean, self.deviation = every.mean(0), every.std(0).clamp_min(1e-6)
        values = [(episode - self.mean) / self.deviation for episode in episodes]
        self.inputs = torch.cat([torch.cat([x[:-1], a[:-1]], -1) for x, a in zip(values, actions, strict=True)])
        moves = torch.cat([x[1:] - x[:-1] for x in values])
        self.size = moves.std(0).clamp_min(1e-6)
        self.moves = moves / self.size
        self.networks = [
            nn.Sequential(
                *(nn.Linear(self.inputs.shape[1], width), nn.SiLU()),
                *(nn.Linear(width, width), nn.SiLU()),
                *(nn.Linear(width, width), nn.SiLU()),
                nn.Linear(width, self.moves.shape[1]),
            )
            for _ in range(networks)
        ]

    def learn(self, steps: int) -> None:
        """Train each network for so many steps; prints its error, relative to the variance of the changes."""
        for number, network in enumerate(self.networks, 1):
            optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=1e-4)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, RATE / 50)
            for _ in range(steps):
                rows = torch.randint(len(self.inputs), (BATCH,))
                loss = (network(self.inputs[rows]) - self.moves[rows]).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            print(f"network {number} of {len(self.networks)}: error {float(loss.detach()):.3f} in training", flush=True)

    @torch.no_grad()
    def follow(self, start: Tensor, actions: Tensor) -> Tensor:
        """Values after each of the actions [W, h, A] from `start` [W, p], by each network: [W, networks, h, p]."""
        futures = []
        for network in self.networks:
            value, path = (start - self.mean) / self.deviation, []
            for action in actions.unbind(1):
                value = value + network(torch.cat([value, action], -1)) * self.size
                path.append(value * self.deviation + self.mean)
            futures.append(torch.stack(path, 1))
        return torch.stack(futures, 1)


def drawn(simulation: Simulation, kept: KeptStates, windows: Windows, numbers: list[int], future: Tensor) -> Tensor:
    """The mean over networks of the frames of `future` [W, networks, h, p], in [-1, 1]: [W, h, 3, S, S]."""
    frames = []
    for row, (episode, first) in enumerate(windows.places):
        number = numbers[episode]
        start = kept.of(number)[first + Questions.context - 1]
        states = [as_states(each, start, kept.layout) for each in future[row].double().numpy()]
        levels = torch.from_numpy(simulation.redraw(number, np.concatenate(states)))
        frames.append(levels.float().unflatten(0, (len(states), -1)).mean(0))
        if (row + 1) % 10 == 0:
            print(f"{row + 1} of {len(windows)} windows drawn", flush=True)
    return (torch.stack(frames) / 127.5 - 1).movedim(-1, -3)


def taught(folder: Path, kept: KeptStates, asked: argparse.Namespace) -> Learner:
    """A learner that was trained on the training episodes of the shards."""
    episodes = open_store(folder, "train")
    states = [values(kept, number) for number in numbers_of(folder, "train")]
    actions = [episodes.gather(np.array([[e, 0]]), n).actions[0] for e, n in enumerate(episodes.lengths)]
    learner = Learner(states, actions, asked.networks, asked.width)
    learner.learn(asked.steps)
    return learner


def values(kept: KeptStates, number: int) -> Tensor:
    """What is learnt of an episode: float32 [N, p]."""
    return torch.from_numpy(seen(kept.of(number), kept.layout)).float()


def simulation_of(kept: KeptStates) -> tuple[Simulation, Choices]:
    """The simulation that recorded the states, and its choices; `UserError` where nothing renders."""
    graphics, results = choose_graphics()
    if graphics is None:
        raise UserError(f"nothing renders here, {results[0].line} (`aime-fast doctor` says more)")
    # The policy that recorded has acted already, and its module may not be here.
    choices = replace(Choices.of(kept.collection), policy="random")
    return make_simulation(choices, graphics), choices


def main() -> None:
    """Print what the ensemble predicts, with the windows' own actions and with another window's."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.horizon.privileged", description=__doc__)
    parser.add_argument("shards", type=Path)
    for name, default in (("steps", 6000), ("width", 256), ("networks", 2), ("stride", 50)):
        parser.add_argument(f"--{name}", type=count, default=default)
    asked = parser.parse_args()
    torch.manual_seed(0)
    folder, context = asked.shards, Questions.context
    manifest = load_manifest(folder)
    kept = read_states(folder, manifest)
    simulation, choices = simulation_of(kept)
    if choices.size != manifest.image_size:
        raise UserError(f"{folder} has frames of {manifest.image_size} pixels, made of {choices.size}: judge those")
    learner = taught(folder, kept, asked)

    numbers = numbers_of(folder, "val")
    windows = make_windows(open_store(folder, "val"), context + Questions.horizon, asked.stride)
    every = windows.batch(np.arange(len(windows)))
    start = torch.stack([values(kept, numbers[e])[first + context - 1] for e, first in windows.places])
    truth, found = every.observations[:, context:], dict[str, Tensor]()
    for name, taken in (("own", every.actions), ("another's", every.actions[windows.partners])):
        future = learner.follow(start, taken[:, context - 1 : -1])
        frames = drawn(simulation, kept, windows, numbers, future)
        found[name] = psnr(frames.float(), truth.movedim(-1, -3).float() / 127.5 - 1)
    other, _ = other_futures(windows, numbers, kept, context)
    possible = possible_loss(frame_distance(truth, other), REFERENCE)
    share = share_of_possible(found["own"], found["another's"], possible, windows.episodes)
    print(f"{folder.name}: {len(windows)} held-out windows, PSNR in dB; share of what {REFERENCE:.0f} dB could lose")
    for h in HORIZONS:
        own, others = (mean_over(found[name][:, h - 1].numpy(), windows.episodes) for name in found)
        print(f"{h:3d} frames ahead: {own}; with another window's actions {others}; share {share[h - 1]}")


def numbers_of(folder: Path, split: str) -> list[int]:
    """The numbers of the episodes of a split, among all recorded."""
    return [entry.id for entry in load_manifest(folder).entries(split, folder)]


if __name__ == "__main__":
    sys.exit(exit_on_user_error(main))
