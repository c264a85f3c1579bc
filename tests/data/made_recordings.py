"""Small recordings, written without any of the code under test."""

import h5py
import numpy as np

LENGTHS = [40, 16, 33, 5, 17]


def columns(lengths=LENGTHS, action_dim=3, seed=0):
    """Columns of episodes end to end, in noise, so that no two frames are alike."""
    random = np.random.default_rng(seed)
    frames, ends = sum(lengths), np.cumsum(lengths)
    dones = np.zeros(frames, np.uint8)
    dones[ends - 1] = 1
    terminated = np.zeros(frames, np.uint8)
    terminated[ends[::2] - 1] = 1  # every second episode ends by itself, and the others are cut
    return {
        "observations": random.integers(0, 256, (frames, 64, 64, 3), dtype=np.uint8),
        "actions": random.uniform(-1, 1, (frames, action_dim)).astype(np.float32),
        "rewards": random.normal(size=frames).astype(np.float32),
        "dones": dones,
        "terminated": terminated,
        "episode_ends": ends,
    }


def write_hdf5(path, data, environment="reacher_easy"):
    with h5py.File(path, "w") as file:
        for name, values in data.items():
            file[name] = values
        if environment:
            file.attrs["env"] = environment
    return path
