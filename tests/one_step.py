"""A small recording, and the run of one step on it."""

import h5py
import numpy as np

from aime_fast.commands.main import main


def write_noise(path):
    """Three episodes of 20 frames of noise, two numbers in an action; the last one is held out. Gives the path."""
    draw = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file["observations"] = draw.integers(0, 256, (60, 64, 64, 3), np.uint8)
        file["actions"] = draw.standard_normal((60, 2)).astype(np.float32)
        file["rewards"], file["dones"] = np.zeros(60, np.float32), np.zeros(60, np.uint8)
        file["episode_ends"] = np.array([20, 40, 60])
    return str(path)


def train_one_step(recording, folder):
    """The folder of a run of `debug`."""
    sizes = ["--loader.batch-size", "1", "--loader.sequence-length", "4", "--loader.windows-per-epoch", "1"]
    data = ["--data", str(recording), "--steps", "1", "--out", str(folder)]
    assert main(["train", "--preset", "debug", *sizes, *data]) == 0
    return str(folder)
