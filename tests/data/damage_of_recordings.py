"""Damage to recordings: cases for every layout that `pack` reads."""

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch
import written_layouts as layouts
from corpus import Case, cut, edit_json, flip

LENGTHS = [9, 4, 6]
FILES = {layouts.hdf5_file, layouts.torch_file, layouts.v_d4rl_file, layouts.dmc_vb_file, layouts.rlds_gzip}
FILES |= {layouts.rlds_zlib, layouts.sequence_example_file}
FOLDERS = {layouts.hdf5_folder, layouts.dreamer_folder, layouts.rlds_folder, layouts.minari_folder}
FOLDERS |= {layouts.lerobot_folder, layouts.lerobot_images}
LAYOUTS = {layout.__name__: layout for layout in sorted(FILES | FOLDERS, key=lambda layout: layout.__name__)}
# Zip and TFRecord carry checksums of all that is read; HDF5, parquet and video, as written here, do not.
CHECKED = ("torch_file", "dreamer_folder", "rlds_folder", "rlds_gzip", "rlds_zlib", "dmc_vb_file")
UNCHECKED = ("hdf5_file", "v_d4rl_file", "minari_folder", "lerobot_folder", "lerobot_images")

Damage = Callable[[Path, np.random.Generator], str]


def data_files(path: Path) -> list[Path]:
    """The files that a recording is read from."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return [file for file in files if file.name not in ("features.json", "plain")]


def in_some_file(damage: Damage) -> Damage:
    return lambda path, random: damage(data_files(path)[int(random.integers(len(data_files(path))))], random)


def flip_near_the_start(path: Path, random: np.random.Generator) -> str:
    """Where formats keep what is where."""
    return flip(path, random, 0, min(2000, path.stat().st_size))


def _random_places() -> list[Case]:
    cases = [Case(f"{name}/cut {n}", in_some_file(cut), ("data",)) for name in LAYOUTS for n in range(3)]
    cases += [Case(f"{name}/bit {n}", in_some_file(flip), ("data",)) for name in CHECKED for n in range(4)]
    for name in UNCHECKED:
        for n in range(3):
            cases.append(Case(f"{name}/unchecked bit {n}", in_some_file(flip), ("data",)))
            cases.append(Case(f"{name}/unchecked bit near the start {n}", in_some_file(flip_near_the_start), ("data",)))
    return cases


def _without(pattern: str) -> Damage:
    def damage(path: Path, random: np.random.Generator) -> str:
        files = sorted(path.glob(pattern))
        assert files
        for file in files:
            file.unlink()
        return f"{pattern}: removed"

    return damage


def _removed() -> list[Case]:
    patterns = {
        "hdf5_folder": ["*"],
        "dreamer_folder": ["*"],
        "rlds_folder": ["1.0.0/*tfrecord*"],
        "minari_folder": ["data/metadata.json", "data/main_data.hdf5"],
        "lerobot_folder": ["meta/info.json", "meta/episodes/*/*", "data/*/file-001*", "videos/*/*/file-000*"],
        "lerobot_images": ["data/*/file-000*"],
    }
    return [
        Case(f"{name}/without {pattern}", _without(pattern), ("data",), refused=True)
        for name, every in patterns.items()
        for pattern in every
    ]


def _columns() -> dict[str, np.ndarray]:
    """Two episodes end to end, in this project's own names."""
    random, frames = np.random.default_rng(0), 13
    return {
        "observations": random.integers(0, 256, (frames, 64, 64, 3), dtype=np.uint8),
        "actions": random.uniform(-1, 1, (frames, 3)).astype(np.float32),
        "rewards": random.normal(size=frames).astype(np.float32),
        "dones": np.isin(np.arange(frames), (6, frames - 1)),
        "episode_ends": np.array([7, frames]),
    }


def _put(**changes: object) -> Callable[[dict], dict]:
    """Other columns in place of some; None takes one out, a function changes it."""

    def change(data: dict) -> dict:
        new = {name: value(data[name]) if callable(value) else value for name, value in changes.items()}
        return {name: value for name, value in (data | new).items() if value is not None}

    return change


def _at(place: tuple[int, ...], value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array[place] = value
        return array

    return change


COLUMN_CHANGES: dict[str, Callable[[dict], dict]] = {
    "no observations": _put(observations=None),
    "no actions": _put(actions=None),
    "nothing": lambda data: {},
    "an observation less": _put(observations=lambda a: a[:-1]),
    "an action less": _put(actions=lambda a: a[:-1]),
    "a reward more": _put(rewards=lambda a: np.append(a, a[:1])),
    "a done less": _put(dones=lambda a: a[:-1]),
    "no frames": lambda data: {name: values[:0] for name, values in data.items()},
    "no ends": _put(episode_ends=lambda a: a[:0]),
    "NaN action": _put(actions=_at((8, 1), np.nan)),
    "infinite action": _put(actions=_at((0, 0), -np.inf)),
    "NaN reward": _put(rewards=_at((12,), np.nan)),
    "huge action": _put(actions=lambda a: a.astype(np.float64) * 1e200),
    "integer actions": _put(actions=lambda a: a.astype(np.int64)),
    "truth values for actions": _put(actions=lambda a: a > 0),
    "flat actions": _put(actions=lambda a: a[:, 0]),
    "deep actions": _put(actions=lambda a: a[..., None]),
    "wide rewards": _put(rewards=lambda a: a[:, None]),
    "frames in floats": _put(observations=lambda a: a / np.float32(255)),
    "signed frames": _put(observations=lambda a: a.astype(np.int8)),
    "grey frames": _put(observations=lambda a: a[..., :1]),
    "frames with depth": _put(observations=lambda a: np.concatenate([a, a[..., :1]], -1)),
    "flat frames": _put(observations=lambda a: a.reshape(13, -1)),
    "frames of no height": _put(observations=lambda a: a[:, :0]),
    "ends beyond": _put(episode_ends=np.array([7, 14])),
    "ends that fall": _put(episode_ends=np.array([13, 7])),
    "ends twice": _put(episode_ends=np.array([7, 7, 13])),
    "negative ends": _put(episode_ends=np.array([-7, 13])),
    "ends in floats": _put(episode_ends=np.array([7.0, 13.0])),
    "an end in the middle": _put(episode_ends=np.array([13])),
    "deep dones": _put(dones=lambda a: a[:, None]),
    "complex dones": _put(dones=lambda a: a.astype(np.complex64)),
}


def write_columns(path: Path, data: dict[str, np.ndarray]) -> None:
    if path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            for name, values in data.items():
                file[name] = values
    elif path.suffix == ".npz":
        np.savez(path, **data)
    else:
        torch.save({name: torch.from_numpy(values) for name, values in data.items()}, path)


def _column_cases() -> list[Case]:
    """The recording is written in place of the one that was copied."""
    cases = []
    for ending in ("h5", "npz", "pt"):
        for name, change in COLUMN_CHANGES.items():

            def damage(path: Path, random: np.random.Generator, change: Callable = change, ending: str = ending) -> str:
                write_columns(path / f"columns.{ending}", change(_columns()))
                return "columns changed"

            cases.append(Case(f"columns/{ending} {name}", damage, (f"columns.{ending}",), refused=True))
    return cases


class Trap:
    """Unpickling this creates a file."""

    def __init__(self, folder: Path) -> None:
        self.path = folder.parent / "sprung"

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def _trap_pt(path: Path, trap: Trap) -> None:
    torch.save({"observations": trap}, path / "t.pt")


def _trap_old_pt(path: Path, trap: Trap) -> None:
    torch.save({"observations": trap}, path / "t.pt", _use_new_zipfile_serialization=False)


def _trap_beside_tensors(path: Path, trap: Trap) -> None:
    torch.save({**{name: torch.from_numpy(values) for name, values in _columns().items()}, "env": trap}, path / "t.pt")


def _trap_as_key(path: Path, trap: Trap) -> None:
    (path / "t.pt").write_bytes(pickle.dumps({(trap,): 1}))


def _trap_in_npz(name: str) -> Callable[[Path, Trap], None]:
    return lambda path, trap: np.savez(path / "t.npz", **_columns() | {name: np.array([trap] * 13, object)})


def _bare_pickle_in_npz(path: Path, trap: Trap) -> None:
    with zipfile.ZipFile(path / "t.npz", "w") as archive:
        archive.writestr("observations.npy", pickle.dumps(trap))


def _expression_in_npz(path: Path, trap: Trap) -> None:
    """The header of an array is a Python literal; this one is a call."""
    code = f"{{'descr': '|u1', 'fortran_order': False, 'shape': (open({str(trap.path)!r}, 'w'),)}}"
    code = code.ljust(502 - 10) + "\n"
    with zipfile.ZipFile(path / "t.npz", "w") as archive:
        archive.writestr("observations.npy", b"\x93NUMPY\x01\x00" + len(code).to_bytes(2, "little") + code.encode())


def _pickle_in_hdf5(path: Path, trap: Trap) -> None:
    with h5py.File(path / "t.h5", "w") as file:
        for name, values in _columns().items():
            file[name] = values
        del file["actions"]
        file["actions"] = np.array([np.void(pickle.dumps(trap))] * 13)


def _attribute_in_path(path: Path, trap: Trap) -> None:
    """LeRobot's paths are format strings, which can ask for attributes."""
    edit_json(path / "meta" / "info.json", lambda m: m.update(data_path="{chunk_index.__class__.__mro__}"))


def _environment_of_minari(path: Path, trap: Trap) -> None:
    """Without the spaces, Minari's library makes the environment that the metadata name: any callable."""
    from gymnasium.envs.registration import EnvSpec

    call = {"command": f"touch {trap.path}"}
    specification = EnvSpec("x-v0", "os:system", order_enforce=False, disable_env_checker=True, kwargs=call).to_json()

    def change(metadata: dict) -> None:
        del metadata["observation_space"], metadata["action_space"]
        metadata["env_spec"] = specification

    edit_json(path / "data" / "metadata.json", change)


def _traps() -> list[Case]:
    makers: dict[str, Callable[[Path, Trap], None]] = {
        "columns/a trap in .pt": _trap_pt,
        "columns/a trap in an old .pt": _trap_old_pt,
        "columns/a trap beside tensors": _trap_beside_tensors,
        "columns/a trap as a key": _trap_as_key,
        "columns/a bare pickle named .pt": lambda path, trap: (path / "t.pt").write_bytes(pickle.dumps(trap)),
        "columns/a pickle named .h5": lambda path, trap: (path / "t.h5").write_bytes(pickle.dumps(trap)),
        "columns/a pickle named .npz": lambda path, trap: (path / "t.npz").write_bytes(pickle.dumps(trap)),
        "columns/a trap in the frames of npz": _trap_in_npz("observations"),
        "columns/a trap in the actions of npz": _trap_in_npz("actions"),
        "columns/a trap in the dones of npz": _trap_in_npz("dones"),
        "columns/a trap in the ends of npz": _trap_in_npz("episode_ends"),
        "columns/a bare pickle in npz": _bare_pickle_in_npz,
        "columns/an expression in npz": _expression_in_npz,
        "columns/pickles in HDF5": _pickle_in_hdf5,
        "lerobot_images/attributes in a path": _attribute_in_path,
        "minari_folder/an environment to call": _environment_of_minari,
    }

    def set_by(make: Callable[[Path, Trap], None]) -> Damage:
        def damage(path: Path, random: np.random.Generator) -> str:
            make(path, Trap(path))
            return "a trap set"

        return damage

    return [Case(name, set_by(make), ("data",), refused=True) for name, make in makers.items()]


def _minari() -> list[Case]:
    def file(change: Callable[[h5py.File], object]) -> Damage:
        def damage(path: Path, random: np.random.Generator) -> str:
            with h5py.File(path / "data" / "main_data.hdf5", "r+") as opened:
                change(opened)
            return "main_data.hdf5 edited"

        return damage

    def metadata(**changes: object) -> Damage:
        def damage(path: Path, random: np.random.Generator) -> str:
            edit_json(path / "data" / "metadata.json", lambda m: m.update(changes))
            return f"metadata: {changes}"

        return damage

    def replace(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Damage:
        def edit(opened: h5py.File) -> None:
            values = opened[f"episode_1/{name}"][()]
            del opened[f"episode_1/{name}"]
            opened[f"episode_1/{name}"] = change(values)

        return file(edit)

    damages = {
        **{
            f"no {n}": file(lambda f, n=n: f["episode_1"].__delitem__(n))
            for n in ("observations", "actions", "rewards")
        },
        "no terminations": file(lambda f: f["episode_1"].__delitem__("terminations")),
        "no episode": file(lambda f: f.__delitem__("episode_1")),
        "no length": file(lambda f: f["episode_1"].attrs.__delitem__("total_steps")),
        "a wrong number of steps": file(lambda f: f["episode_1"].attrs.__setitem__("total_steps", 5)),
        "an action less": replace("actions", lambda a: a[:-1]),
        "a reward less": replace("rewards", lambda a: a[:-1]),
        "an observation less": replace("observations", lambda a: a[:-1]),
        "a NaN action": replace("actions", _at((1, 0), np.nan)),
        "integer actions": replace("actions", lambda a: a.astype(np.int64)),
        "frames in floats": replace("observations", lambda a: a.astype(np.float32)),
        "early end": replace("terminations", lambda a: ~a),
        "more episodes": metadata(total_episodes=4),
        "no episodes": metadata(total_episodes=0),
        "episodes text": metadata(total_episodes="three"),
        "episodes negative": metadata(total_episodes=-1),
        "another storage": metadata(data_format="pickle"),
        "JPEG that is none": metadata(jpeg_encoding=True),
        "space of another kind": metadata(observation_space='{"type": "Sphere"}'),
        "space not JSON": metadata(action_space="Box(-1, 1)"),
        "space null": metadata(action_space=None),
    }
    # What the table says of lengths does not change what is read; packing, which relies on it, refuses.
    return [
        Case(f"minari_folder/{name}", damage, ("data",), refused=name != "a wrong number of steps")
        for name, damage in damages.items()
    ]


def _lerobot() -> list[Case]:
    from pyarrow import Table, parquet

    def table(name: str, change: Callable[[list[dict]], object]) -> Damage:
        def damage(path: Path, random: np.random.Generator) -> str:
            (file,) = path.glob(name)
            rows = parquet.read_table(file).to_pylist()
            change(rows)
            parquet.write_table(Table.from_pylist(rows), file)
            return f"{name} edited"

        return damage

    def episodes(**changes: object) -> Damage:
        return table("meta/episodes/*/*.parquet", lambda rows: rows[1].update(changes))

    def info(**changes: object) -> Damage:
        def damage(path: Path, random: np.random.Generator) -> str:
            edit_json(path / "meta" / "info.json", lambda m: m.update(changes))
            return f"info.json: {changes}"

        return damage

    data = "data/*/file-000.parquet"
    camera = "videos/observation.images.top"
    damages = {
        "longer": episodes(length=5),
        "shorter": episodes(length=3),
        "no length": episodes(length=None),
        "of no length": episodes(length=0),
        "negative length": episodes(length=-4),
        "huge length": episodes(length=10**12),
        "another data file": episodes(**{"data/file_index": 1}),
        "no data file": episodes(**{"data/file_index": 7}),
        "another video": episodes(**{f"{camera}/file_index": 1}),
        "beyond the video": episodes(**{f"{camera}/from_timestamp": 100.0}),
        "time NaN": episodes(**{f"{camera}/from_timestamp": float("nan")}),
        "time infinite": episodes(**{f"{camera}/from_timestamp": float("inf")}),
        "time null": episodes(**{f"{camera}/from_timestamp": None}),
        "no table of episodes": table("meta/episodes/*/*.parquet", list.clear),
        "a row less": table(data, lambda rows: rows.pop(2)),
        "a row twice": table(data, lambda rows: rows.append(rows[3])),
        "a NaN action": table(data, lambda rows: rows[2]["action"].__setitem__(0, float("nan"))),
        "a shorter action": table(data, lambda rows: rows[2]["action"].pop()),
        "no action": table(data, lambda rows: rows[2].update(action=None)),
        "an infinite reward": table(data, lambda rows: rows[2].update({"next.reward": float("inf")})),
        "no columns": table(data, lambda rows: [row.pop("action") for row in rows]),
        "version 2": info(codebase_version="v2.1"),
        "no features": info(features={}),
        "features a list": info(features=[]),
        "fps null": info(fps=None),
        "fps NaN": info(fps=float("nan")),
        "fps infinite": info(fps=float("inf")),
        "data path null": info(data_path=None),
        "data path upwards": info(data_path="../{chunk_index}/{file_index}.parquet"),
        "video path to the root": info(video_path="/dev/zero"),
        "video path a folder": info(video_path="videos"),
    }
    return [Case(f"lerobot_folder/{name}", damage, ("data",), refused=True) for name, damage in damages.items()]


def _rlds() -> list[Case]:
    def picture(step: int, data: bytes) -> Callable[[dict], object]:
        return lambda f: f["steps/observation/pixels"][0].__setitem__(step, data)

    changes: dict[str, Callable[[dict], object]] = {
        "no pictures": lambda f: f.pop("steps/observation/pixels"),
        "no actions": lambda f: f.pop("steps/action"),
        "a reward less": lambda f: f["steps/reward"][0].pop(),
        "an action number less": lambda f: f["steps/action"][0].pop(),
        "an infinite action": lambda f: f["steps/action"][0].__setitem__(3, float("inf")),
        "an early end": lambda f: f["steps/is_last"][0].__setitem__(0, 1),
        "half a picture": picture(2, layouts.png(np.zeros((64, 64, 3), np.uint8))[:60]),
        "an empty picture": picture(2, b""),
        "a picture of another size": picture(1, layouts.png(np.zeros((32, 32, 3), np.uint8))),
        "numbers for pictures": lambda f: f.update({"steps/observation/pixels": ([1] * 5, "int")}),
    }

    def written(change: Callable[[dict], object]) -> Damage:
        def damage(path: Path, random: np.random.Generator) -> str:
            features = [layouts.rlds_features(*episode) for episode in layouts.sample_episodes([6, 4])]
            change(features[1])
            layouts.write_tfrecord(path / "r.tfrecord", features)
            return "features changed"

        return damage

    return [Case(f"columns/rlds {n}", written(c), ("r.tfrecord",), refused=True) for n, c in changes.items()]


RECORDING_CASES: list[Case] = [
    *_random_places(),
    *_removed(),
    *_column_cases(),
    *_traps(),
    *_minari(),
    *_lerobot(),
    *_rlds(),
]
