"""Episodes written in the layouts of other projects, by their own libraries or by hand, never by the code under test.

Each writer gets a new folder and episodes of (observations, actions, rewards), where actions[t] follows
observations[t], and returns the path to read. Layouts whose last frame has no action after it get one more frame.
"""

import gzip
import io
import json
import zlib

import h5py
import numpy as np
import torch
from PIL import Image

from aime_fast.data.store import open_store

LENGTHS = [21, 16, 5]


def sample_episodes(lengths=LENGTHS):
    """The first frames of episodes of the recorded sample, each with one frame more than actions and rewards."""
    store = open_store(None, "all")
    episodes = []
    for number, length in enumerate(lengths):
        batch = store.gather(np.array([[number, 3]]), length + 1)
        episodes.append(
            (batch.observations[0].numpy(), batch.actions[0].numpy()[:-1], batch.rewards[0].numpy()[:-1] + 0.25)
        )
    return episodes


def _marks(length, place, dtype=bool):
    marks = np.zeros(length, dtype)
    marks[place] = True
    return marks


def hdf5_file(folder, episodes):
    with h5py.File(folder / "all.h5", "w") as file:
        file["observation_pixels"] = np.concatenate([o[:-1] for o, _, _ in episodes])
        file["action"] = np.concatenate([a for _, a, _ in episodes])
        file["reward"] = np.concatenate([r for _, _, r in episodes])
        file["is_last"] = np.concatenate([_marks(len(a), -1) for _, a, _ in episodes])
        file.attrs["env"] = "cheetah_run"
    return folder / "all.h5"


def hdf5_folder(folder, episodes):
    """One file an episode; episode 10 comes after episode 2."""
    for number, (o, a, r) in zip((2, 10, 11), episodes, strict=True):
        with h5py.File(folder / f"episode_{number}.hdf5", "w") as file:
            file["observations"], file["actions"], file["rewards"] = o[:-1], a, r
    return folder


def torch_file(folder, episodes):
    columns = [np.concatenate(c) for c in zip(*((o[:-1], a, r) for o, a, r in episodes), strict=True)]
    content = dict(zip(("pixels", "actions", "rewards"), map(torch.from_numpy, columns), strict=True))
    content["dones"] = torch.cat([torch.from_numpy(_marks(len(a), -1)) for _, a, _ in episodes])
    torch.save(content, folder / "all.pt")
    return folder / "all.pt"


def dreamer_folder(folder, episodes, last=3):
    """`action[t]` led to `image[t]`; the first row's is zero."""
    for number, (o, a, r) in enumerate(episodes):
        n = len(o)
        np.savez_compressed(
            folder / f"20260101T00000{number}-{'ab' * 8}-{n}.npz",
            image=o,
            action=np.concatenate([np.zeros_like(a[:1]), a]),
            reward=np.concatenate([np.zeros_like(r[:1]), r]),
            discount=np.ones(n, np.float32),
            is_first=_marks(n, 0),
            is_last=_marks(n, -1),
            is_terminal=np.zeros(n, bool),
        )
    return folder


def v_d4rl_file(folder, episodes):
    """V-D4RL's HDF5: channels first, episodes end to end, `step_type` 0, 1, ..., 1, 2."""
    with h5py.File(folder / "data.hdf5", "w") as file:
        file["observation"] = np.concatenate([o for o, _, _ in episodes]).transpose(0, 3, 1, 2)
        file["action"] = np.concatenate([np.concatenate([0 * a[:1], a]) for _, a, _ in episodes])
        file["reward"] = np.concatenate([np.concatenate([0 * r[:1], r]) for _, _, r in episodes])
        file["discount"] = np.concatenate([np.ones(len(o), np.float32) for o, _, _ in episodes])
        file["step_type"] = np.concatenate([[0, *[1] * (len(o) - 2), 2] for o, _, _ in episodes])
    return folder / "data.hdf5"


def png(frame):
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return buffer.getvalue()


def rlds_features(o, a, r, picture=png, arriving=False):
    """Features of one episode in RLDS: the last step has only its observation, action and reward are zero."""
    rewards = [0.0, *r] if arriving else [*r, 0.0]
    return {
        "steps/observation/pixels": ([picture(frame) for frame in o], "byte"),
        "steps/action": (np.concatenate([a, 0 * a[:1]]).ravel().tolist(), "float"),
        "steps/reward": ([float(x) for x in rewards], "float"),
        "steps/discount": ([1.0] * len(o), "float"),
        "steps/is_first": (_marks(len(o), 0, int).tolist(), "int"),
        "steps/is_last": (_marks(len(o), -1, int).tolist(), "int"),
        "steps/is_terminal": ([0] * len(o), "int"),
    }


def write_tfrecord(path, records):
    from tfrecord.writer import TFRecordWriter

    writer = TFRecordWriter(str(path))
    for record in records:
        writer.write(record)
    writer.close()
    return path


def rlds_folder(folder, episodes):
    """As TFDS writes it: a folder of the version, files of several episodes, some of them beside metadata."""
    version = folder / "1.0.0"
    version.mkdir()
    (version / "features.json").write_text("{}")
    for number, part in enumerate((episodes[:2], episodes[2:])):
        records = [rlds_features(*episode) for episode in part]
        write_tfrecord(version / f"cheetah-train.tfrecord-{number:05d}-of-00002", records)
    return folder


def rlds_gzip(folder, episodes):
    path = write_tfrecord(folder / "plain", [rlds_features(*e, picture=np.ndarray.tobytes) for e in episodes])
    (folder / "all.tfrecord").write_bytes(gzip.compress(path.read_bytes(), 1))
    return folder / "all.tfrecord"


def rlds_zlib(folder, episodes):
    """The file in zlib, and the pictures in it too."""
    records = [rlds_features(*e, picture=lambda frame: zlib.compress(frame.tobytes())) for e in episodes]
    path = write_tfrecord(folder / "plain", records)
    (folder / "all.tfrecord").write_bytes(zlib.compress(path.read_bytes(), 1))
    return folder / "all.tfrecord"


def dmc_vb_file(folder, episodes):
    """Rewards beside the frame they led to, as dm_env hands them out."""
    return write_tfrecord(folder / "dmc.tfrecord", [rlds_features(*e, arriving=True) for e in episodes])


def sequence_example_file(folder, episodes):
    from tfrecord.writer import TFRecordWriter

    writer = TFRecordWriter(str(folder / "all.tfrecord"))
    for o, a, r in episodes:
        features = rlds_features(o, a, r)
        columns = {}
        for key, (values, kind) in features.items():
            rows = np.reshape(values, (len(o), -1)).tolist() if kind != "byte" else [[value] for value in values]
            columns[key] = (rows, kind)
        writer.write({"episode_id": (1, "int")}, columns)
    writer.close()
    return folder / "all.tfrecord"


def minari_folder(folder, episodes, jpeg=False, observe=lambda o: o, data_format="hdf5"):
    import gymnasium
    from minari.data_collector.episode_buffer import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    picture = gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    observed = observe(picture)
    space = gymnasium.spaces.Dict(observed) if isinstance(observed, dict) else observed
    actions = gymnasium.spaces.Box(-1, 1, (episodes[0][1].shape[1],), np.float32)
    storage = MinariStorage.new(folder / "data", space, actions, data_format=data_format, jpeg_encoding=jpeg)
    storage.update_episodes(
        EpisodeBuffer(
            observations=observe(list(o)),
            actions=list(a),
            rewards=r.tolist(),
            terminations=[False] * len(a),
            truncations=_marks(len(a), -1).tolist(),
        )
        for o, a, r in episodes
    )
    return folder


def lerobot_folder(folder, episodes, camera="observation.images.top", video=True, fps=20):
    """Two episodes share the first video and data file, the third has its own. The video is lossless."""
    import pyarrow
    from pyarrow import parquet

    kind = {"dtype": "video" if video else "image", "shape": [64, 64, 3], "names": ["height", "width", "channels"]}
    info = {
        "codebase_version": "v3.0",
        "fps": fps,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": {
            camera: {**kind, "info": {"video.codec": "h264"}},
            "action": {"dtype": "float32", "shape": [episodes[0][1].shape[1]]},
            "next.reward": {"dtype": "float32", "shape": [1]},
        },
    }
    (folder / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    table, first = [], 0
    for file, numbers in enumerate(([0, 1], [2])):
        chosen = [episodes[number] for number in numbers]
        rows = [
            {
                "action": a[t].tolist(),
                "next.reward": float(r[t]),
                "episode_index": number,
                "frame_index": t,
                **({} if video else {camera: {"bytes": png(o[t]), "path": None}}),
            }
            for number, (o, a, r) in zip(numbers, chosen, strict=True)
            for t in range(len(a))
        ]
        path = folder / info["data_path"].format(chunk_index=0, file_index=file)
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        if video:
            path = folder / info["video_path"].format(video_key=camera, chunk_index=0, file_index=file)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_video(path, np.concatenate([o[:-1] for o, _, _ in chosen]), fps)
        start = 0
        for number, (_, a, _) in zip(numbers, chosen, strict=True):
            row = {"episode_index": number, "length": len(a), "stats/action/mean": [0.0]}
            row |= {"dataset_from_index": first, "data/chunk_index": 0, "data/file_index": file}
            row |= {f"videos/{camera}/chunk_index": 0, f"videos/{camera}/file_index": file}
            row[f"videos/{camera}/from_timestamp"] = start / fps
            table.append(row)
            start, first = start + len(a), first + len(a)
    path = folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(table), path)
    return folder


def lerobot_images(folder, episodes):
    return lerobot_folder(folder, episodes, video=False)


def write_video(path, frames, fps):
    """H.264 in RGB at quantiser 0, which is lossless; a picture in eight needs no other."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=fps, options={"qp": "0", "g": "8", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "rgb24"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
