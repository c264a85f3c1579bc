import pickle

import numpy as np
import pytest
import torch
from made_recordings import LENGTHS, columns, write_hdf5

from aime_fast.data.sources import open_source
from aime_fast.errors import UserError


def without(data, *names):
    return {name: values for name, values in data.items() if name not in names}


def write(path, data, environment="reacher_easy"):
    if path.suffix == ".h5":
        return write_hdf5(path, data, environment)
    content = {name: torch.from_numpy(np.asarray(values)) for name, values in data.items()}
    torch.save({**content, "env": environment}, path)
    return path


def assert_holds(source, data):
    """Every episode is its slice of the columns."""
    assert source.lengths == LENGTHS
    episodes = list(source.read())
    first = 0
    for episode, length in zip(episodes, LENGTHS, strict=True):
        part = slice(first, first + length)
        for name in ("observations", "actions", "rewards"):
            np.testing.assert_array_equal(getattr(episode, name), data[name][part])
        done = episode.terminated | episode.truncated
        assert done[-1] and not done[:-1].any()
        first += length
    return episodes


@pytest.mark.parametrize("ending", [".h5", ".pt"])
def test_episodes_are_the_slices_of_the_columns(tmp_path, data, ending):
    source = open_source(write(tmp_path / f"r{ending}", data))
    assert source.environment == "reacher_easy"
    assert_holds(source, data)
    assert_holds(source, data)  # reading starts over


@pytest.mark.parametrize("ending", [".h5", ".pt"])
def test_other_names_of_the_columns(tmp_path, data, ending):
    names = {"observations": "pixels", "actions": "action", "rewards": "reward", "dones": "terminals"}
    marked = without(data, "terminated")
    renamed = {names.get(name, name): values for name, values in marked.items()}
    episodes = assert_holds(open_source(write(tmp_path / f"r{ending}", renamed)), data)
    assert all(episode.terminated[-1] and not episode.truncated[-1] for episode in episodes)
    episodes = assert_holds(open_source(write(tmp_path / f"s{ending}", without(marked, "episode_ends"))), data)
    assert all(episode.truncated[-1] and not episode.terminated[-1] for episode in episodes)


def test_without_ends_or_dones_a_file_is_one_cut_episode(tmp_path, data):
    source = open_source(write_hdf5(tmp_path / "one.h5", without(data, "episode_ends", "dones", "terminated"), None))
    (episode,) = source.read()
    assert source.environment is None
    assert len(episode) == sum(LENGTHS)
    assert episode.truncated.sum() == 1 and episode.truncated[-1]


def test_double_precision_becomes_single(tmp_path, data):
    wide = {**data, "actions": data["actions"].astype(np.float64), "rewards": data["rewards"].astype(np.float64)}
    assert_holds(open_source(write_hdf5(tmp_path / "wide.h5", wide)), data)


@pytest.mark.parametrize("ending", [".h5", ".pt"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: without(d, "actions"), "no actions (actions or action)"),
        (lambda d: without(d, "observations"), "no observations"),
        (lambda d: {**d, "rewards": d["rewards"][:-1]}, "8 rewards for 9 frames"),
        (lambda d: {**d, "dones": d["dones"][:, None]}, "one truth value or number a frame"),
        (lambda d: {**d, "episode_ends": np.array([5, 5, 9])}, "must rise"),
        (lambda d: {**d, "episode_ends": np.array([5, 8])}, "the number of frames"),
        (lambda d: {**d, "episode_ends": np.array([5.0, 9.0])}, "expected a row of integers"),
        (lambda d: {**d, "episode_ends": np.array([4, 9])}, "episode 1: frame 0 of 5 is marked as the end"),
        (lambda d: {**d, "actions": d["actions"] * np.nan}, "episode 0: actions hold NaN"),
        (lambda d: {**d, "observations": d["observations"].astype(np.float32)}, "expected uint8"),
        (lambda d: {name: values[:0] for name, values in d.items()}, "no frames"),
    ],
)
def test_a_bad_recording_is_named(tmp_path, ending, change, words):
    path = write(tmp_path / f"bad{ending}", change(columns([5, 4])))
    with pytest.raises(UserError) as error:
        list(open_source(path).read())
    assert str(path) in str(error.value)
    assert words in str(error.value)


@pytest.mark.parametrize("name", ["no.h5", "no.pt", "text.txt", "folder"])
def test_what_is_no_recording(tmp_path, name):
    (tmp_path / "text.txt").write_text("frames")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=name):
        open_source(tmp_path / name)


@pytest.mark.parametrize("ending", [".h5", ".pt"])
@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_a_cut_recording_is_named(tmp_path, ending, keep):
    path = write(tmp_path / f"cut{ending}", columns([5, 4]))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep if keep >= 1 else keep * len(whole))])
    with pytest.raises(UserError, match=f"cut{ending}"):
        list(open_source(path).read())


class Trap:
    """Unpickling this creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_torch_file_never_runs_code(tmp_path):
    torch.save({"observations": Trap(tmp_path / "sprung")}, tmp_path / "trap.pt")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    for name in ("trap.pt", "bare.pt"):
        with pytest.raises(UserError, match=name):
            open_source(tmp_path / name)
    assert not (tmp_path / "sprung").exists()
