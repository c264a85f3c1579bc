"""Small recordings as people have them in files of arrays: each builder gets an empty folder and returns the path."""

import io
import json

import h5py
import numpy as np
import torch
from PIL import Image

LENGTHS = [9, 7]


def noise(length=16, size=(64, 64), channels=3, seed=0):
    """Frames uint8 of noise, so that no two are alike, and actions float32 [N,2]."""
    draw = np.random.default_rng(seed)
    frames = draw.integers(0, 256, (length, *size, channels), dtype=np.uint8)
    return frames, draw.uniform(-1, 1, (length, 2)).astype(np.float32)


def smooth(length=16, size=(64, 64)):
    """Frames that JPEG changes little."""
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]]
    return np.stack(
        [
            np.stack([127 + 100 * np.sin(rows / 11 + t / 3), 127 + 100 * np.cos(columns / 9 - t / 2), rows + t], -1)
            for t in range(length)
        ]
    ).astype(np.uint8)


def hdf5(path, **columns):
    """Columns at the top of a file, with ends unless `episode_ends` is None."""
    columns = {"episode_ends": np.cumsum(LENGTHS), **columns}
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            if values is not None:
                file[name] = values
    return path


def columns(folder, observations, **others):
    frames, actions = noise()
    return hdf5(folder / "own.h5", observations=observations(frames), actions=actions, **others)


def groups(folder, cameras, lengths=LENGTHS, dones=None, cut=0, states=True):
    """robomimic: `data/demo_N` with `obs`; `cameras` maps names to frames of all demos, end to end."""
    _, actions = noise(sum(lengths))
    with h5py.File(folder / "demo.hdf5", "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": {}})
        data.attrs["total"] = sum(lengths)
        start = 0
        for number, length in enumerate(lengths):
            rows = slice(start, start + length)
            # The names sort wrongly as text: demo_10 comes before demo_9.
            demo = data.create_group(f"demo_{number + 9}")
            demo["actions"], demo["rewards"] = actions[rows].astype(np.float64), np.zeros(length)
            demo["dones"] = np.zeros(length, np.int64) if dones is None else dones[rows]
            demo["states"] = np.zeros((length, 32))
            demo.attrs["num_samples"] = length
            if states:
                demo["obs/robot0_eef_pos"] = np.zeros((length, 3))
                demo["next_obs/robot0_eef_pos"] = np.zeros((length, 3))
            for name, frames in cameras.items():
                demo[f"obs/{name}"] = frames[start : start + length - cut]
            start += length
        file["mask/train"] = np.array([b"demo_9"])
    return folder / "demo.hdf5"


def jpeg(frame):
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def aloha(folder, store="raw", frames=None):
    """One file for each episode: `action` and `observations/images/cam_high`, raw or as JPEG."""
    frames = noise()[0] if frames is None else frames
    _, actions = noise()
    start = 0
    for number, length in enumerate(LENGTHS):
        rows = slice(start, start + length)
        with h5py.File(folder / f"episode_{number}.hdf5", "w") as file:
            file.attrs["sim"] = False
            file["action"], file["observations/qpos"] = actions[rows], np.zeros((length, 14))
            images = file.create_group("observations/images")
            if store == "raw":
                images["cam_high"], images["cam_low"] = frames[rows], 255 - frames[rows]
            elif store == "padded":
                packed = [jpeg(frame) for frame in frames[rows]]
                longest = max(map(len, packed))
                images["cam_high"] = np.stack([np.frombuffer(p.ljust(longest, b"\0"), np.uint8) for p in packed])
                file["compress_len"] = np.array([[len(p) for p in packed]], float)
            else:
                kind = h5py.vlen_dtype(np.uint8)
                cells = images.create_dataset("cam_high", (length,), dtype=kind)
                for row, frame in enumerate(frames[rows]):
                    cells[row] = np.frombuffer(jpeg(frame), np.uint8)
        start += length
    return folder


def minari_file(folder):
    """The `main_data.hdf5` of a Minari data set, without its folder."""
    frames, actions = noise()
    with h5py.File(folder / "main_data.hdf5", "w") as file:
        for number in range(2):
            group = file.create_group(f"episode_{number}")
            group["observations"], group["actions"] = frames[:8], actions[:7]
            group["rewards"], group["terminations"] = np.zeros(7), np.zeros(7, bool)
            group["truncations"] = np.zeros(7, bool)
    return folder / "main_data.hdf5"


def without_actions(folder):
    """DROID's `trajectory.h5`: actions are a group, pictures are in other files."""
    with h5py.File(folder / "trajectory.h5", "w") as file:
        file["action/joint_position"], file["observation/robot_state/q"] = np.zeros((9, 7)), np.zeros((9, 7))
    return folder / "trajectory.h5"


def unknown_filter(folder):
    """Frames compressed with a filter that h5py does not bring (32001, Blosc)."""
    path = hdf5(folder / "own.h5", actions=noise()[1])
    with h5py.File(path, "r+") as file:
        choices = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        choices.set_chunk((16, 64, 64, 3))
        choices.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, (0,) * 7)
        space = h5py.h5s.create_simple((16, 64, 64, 3))
        data = h5py.h5d.create(file.id, b"observations", h5py.h5t.STD_U8LE, space, choices)
        data.write_direct_chunk((0, 0, 0, 0), b"\2" * 100, 0)
    return path


def dreamer_npz(folder, **change):
    """One Dreamer episode; a column that is None is left out."""
    frames, actions = noise()
    data = dict(image=frames, action=actions, reward=np.zeros(16, np.float32), is_first=np.arange(16) == 0)
    data |= dict(is_last=np.arange(16) == 15, is_terminal=np.zeros(16, bool)) | change
    data["action"][0] = 0
    path = folder / "20260101T000000-abc-16.npz"
    np.savez(path, **{name: values for name, values in data.items() if values is not None})
    return folder


class Custom:
    """A class that only its own project has."""


def torch_of_objects(folder):
    torch.save({"observations": Custom()}, folder / "own.pt")
    return folder / "own.pt"


def pointer(path):
    """What Git leaves in place of a large file where LFS was not installed."""
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 123456\n")
    return path
