"""Processes that record episodes in parallel, each episode into its own file."""

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from aime_fast.data.collect.policies import Policy
from aime_fast.data.collect.simulation import Choices, Simulation
from aime_fast.data.episode import Episode
from aime_fast.data.packing.workers import Tick, Work, WorkerPool
from aime_fast.errors import UserError

Starts = tuple[int, list[tuple[np.ndarray, np.ndarray]]]
"""Number of an episode; kept states [n] of it, each with the actions [h, A] to take from there."""
STATES = "simulator_states"
"""Name of the states in the file of an episode."""


def usable_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


class CollectorPool(WorkerPool[dict[str, Any], tuple[int, Path], None]):
    """`size` processes that simulate `choices` and render with `graphics` (a value of `MUJOCO_GL`).

    A task is the number of an episode and the file to write, which appears complete or not at all.
    """

    def __init__(self, choices: Choices, graphics: str, size: int) -> None:
        advice = "run the same command again, with --processes 1 if memory is short"
        super().__init__(size, _start, (choices, graphics), advice)

    def provenance(self) -> dict[str, Any]:
        """What determines the frames, as the processes report it once they are ready. All must report the same."""
        first, *others = self.hellos()
        if any(other != first for other in others):
            raise UserError("the processes do not render alike; set MUJOCO_GL, or record with --processes 1")
        return first


def _start(choices: Choices, graphics: str) -> tuple[dict[str, Any], Work[tuple[int, Path], None]]:
    simulation = make_simulation(choices, graphics)

    def work(task: tuple[int, Path], tick: Tick) -> None:
        number, path = task
        write_episode(path, *simulation.record(number, lambda: tick(1)), choices.environment)

    return simulation.provenance(), work


def make_simulation(choices: Choices, graphics: str, policy: Policy | None = None) -> Simulation:
    """The simulation in this process, rendered with `graphics`. See `Simulation`."""
    # Mesa's software renderer would start a thread for every core in every process. Pixels do not depend on it.
    os.environ.update(MUJOCO_GL=graphics, LP_NUM_THREADS="0")
    return Simulation(choices, policy)


def write_episode(path: Path, episode: Episode, states: np.ndarray, environment: str) -> None:
    """Write one episode, and the state of each frame, as an HDF5 recording, under another name until it is complete."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with h5py.File(unfinished, "w") as file:
            for name in ("observations", "actions", "rewards"):
                file[name] = getattr(episode, name)
            file["terminals"], file[STATES] = episode.terminated, states
            file.attrs["env"] = environment
        os.replace(unfinished, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error}); make room or choose another folder") from error
    finally:
        unfinished.unlink(missing_ok=True)


def read_states(path: Path) -> np.ndarray:
    """The states float64 [N, n] of an episode that `write_episode` wrote."""
    with h5py.File(path, "r") as file:
        return np.asarray(file[STATES])


class FuturesPool(WorkerPool[None, Starts, list[np.ndarray]]):
    """`size` processes that go on from kept states of episodes with other actions (see `Simulation.futures`).

    A task is the number of an episode and the starts in it.
    """

    def __init__(self, choices: Choices, graphics: str, size: int) -> None:
        super().__init__(size, _start_futures, (choices, graphics), "evaluate again")


def _start_futures(choices: Choices, graphics: str) -> tuple[None, Work[Starts, list[np.ndarray]]]:
    simulation = make_simulation(choices, graphics)
    return None, lambda task, tick: simulation.futures(*task)
