"""What an action in a recording means is found from its content, in every layout, or asked for; fragments are left out.

Episodes are written here by hand in both conventions, so the wanted actions are known without the code under test.
"""

import json
from itertools import pairwise

import h5py
import numpy as np
import pytest
import torch
import written_layouts as layouts

from aime_fast.commands.main import main
from aime_fast.data.dataset import DMCVBDataset
from aime_fast.data.packing.inspection import inspect
from aime_fast.data.packing.pack import pack
from aime_fast.data.shards.manifest import load_manifest, parse_manifest
from aime_fast.data.sources import open_source
from aime_fast.errors import UserError

LENGTHS = [9, 6, 7]


@pytest.fixture(scope="module")
def episodes():
    return layouts.sample_episodes(LENGTHS)


def time_steps(o, a, r, stored):
    """Columns of time steps. The reward came with its frame; the action led to it, or follows as DreamerV3 has it."""
    n, zero = len(o), np.zeros((1, a.shape[1]), np.float32)
    return {
        "image": o,
        "action": np.concatenate([zero, a] if stored == "led" else [a, zero]),
        "reward": np.concatenate([[np.float32(0)], r]),
        "is_first": np.arange(n) == 0,
        "is_last": np.arange(n) == n - 1,
        "is_terminal": np.zeros(n, bool),
    }


def npz_folder(folder, parts):
    for number, columns in enumerate(parts):
        np.savez(folder / f"{number}.npz", **columns)
    return folder


def hdf5_file(folder, parts):
    with h5py.File(folder / "all.h5", "w") as file:
        for name in parts[0]:
            file[name] = np.concatenate([columns[name] for columns in parts])
    return folder / "all.h5"


def torch_file(folder, parts):
    joined = {name: torch.from_numpy(np.concatenate([columns[name] for columns in parts])) for name in parts[0]}
    torch.save(joined, folder / "all.pt")
    return folder / "all.pt"


WRITERS = [npz_folder, hdf5_file, torch_file]
by_name = {"ids": lambda value: getattr(value, "__name__", None)}


def assert_holds(source, episodes):
    assert len(source.lengths) == len(episodes)
    for found, (o, a, r) in zip(source.read(), episodes, strict=True):
        np.testing.assert_array_equal(found.observations, o[:-1])
        np.testing.assert_array_equal(found.actions, a)
        np.testing.assert_array_equal(found.rewards, r)


@pytest.mark.parametrize("write", WRITERS, **by_name)
@pytest.mark.parametrize("stored", ["led", "follows"])
def test_zeros_at_an_end_show_what_actions_mean(tmp_path, episodes, write, stored, capsys):
    path = write(tmp_path, [time_steps(*episode, stored) for episode in episodes])
    source = open_source(path)
    assert source.origin.stored == stored
    shown = "3 of 3 first rows and on 0 of 3 last" if stored == "led" else "0 of 3 first rows and on 3 of 3 last"
    assert shown in source.origin.line
    assert_holds(source, episodes)
    # Said and kept.
    assert main(["pack", str(path), "--out", str(tmp_path / "shards"), "--workers", "1"]) == 0
    assert source.origin.line in capsys.readouterr().err
    assert load_manifest(tmp_path / "shards").origin == source.origin
    for place in (path, tmp_path / "shards"):
        assert f"actions        {source.origin.line.removeprefix('actions ')}" in inspect(place)
        assert source.origin.line in DMCVBDataset(place, sequence_length=2).notes


@pytest.mark.parametrize("write", WRITERS, **by_name)
@pytest.mark.parametrize("ends", ["neither", "both", "idle"])
@pytest.mark.parametrize("choice", ["led", "follows"])
def test_what_content_does_not_show_is_asked_for(tmp_path, episodes, write, ends, choice, capsys):
    """No zeros, zeros at both ends, and a recording that begins and is at rest."""
    parts = [time_steps(*episode, choice) for episode in episodes]
    for columns in parts:
        rows = {"neither": [], "both": [0, -1], "idle": [0, 1, 2]}[ends]
        columns["action"] = columns["action"] + np.float32(0.5) * (columns["action"] == 0)
        columns["action"][rows] = 0
    path = write(tmp_path, parts)
    assert main(["pack", str(path), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert str(path) in said and "--actions led" in said and "--actions follows" in said
    found = open_source(path, actions=choice)
    for episode, columns in zip(found.read(), parts, strict=True):
        wanted = columns["action"][1:] if choice == "led" else columns["action"][:-1]
        np.testing.assert_array_equal(episode.actions, wanted)
    assert f"--actions {choice} says so" in found.origin.line
    assert DMCVBDataset(path, sequence_length=2, actions=choice).action_dim == 6


DEFINED = [layouts.hdf5_file, layouts.torch_file, layouts.rlds_folder, layouts.minari_folder, layouts.lerobot_images]


@pytest.mark.parametrize("layout", DEFINED, **by_name)
def test_formats_in_which_actions_follow_are_not_asked_about(tmp_path, episodes, layout):
    source = open_source(layout(tmp_path, episodes))
    assert source.origin.stored == "follows"
    assert_holds(source, episodes)


def led(o, a, r):
    """The same episode with actions beside the frame that they led to."""
    return o, np.concatenate([0 * a[:1], a[:-1]]), r


def rlds_led(folder, episodes):
    """Zeros stand only on first steps."""
    features = [layouts.rlds_features(*episode) for episode in episodes]
    for columns in features:
        columns["steps/action"][0][-1] = 0.5
    return layouts.write_tfrecord(folder / "all.tfrecord", features)


AGAINST = [
    layouts.hdf5_file,
    layouts.torch_file,
    rlds_led,
    layouts.lerobot_images,
    layouts.lerobot_folder,
]


@pytest.mark.parametrize("layout", AGAINST, **by_name)
def test_content_against_the_format_is_asked_about_and_moved(tmp_path, episodes, layout):
    path = layout(tmp_path, [led(*episode) for episode in episodes])
    with pytest.raises(UserError, match=r"look as if they led to the frame .* --actions led"):
        open_source(path)
    for found, (o, a, _) in zip(open_source(path, actions="led").read(), episodes, strict=True):
        kept = len(found)
        assert kept >= len(a) - 1
        np.testing.assert_array_equal(found.observations, o[:kept])
        np.testing.assert_array_equal(found.actions[: len(a) - 1], a[: len(a) - 1])
    as_it_is = next(iter(open_source(path, actions="follows").read()))
    assert not as_it_is.actions[0].any()


def test_minari_and_shards_take_no_other_meaning(tmp_path, episodes):
    (tmp_path / "minari").mkdir()
    path = layouts.minari_folder(tmp_path / "minari", episodes)
    for place in (path, pack(path, tmp_path / "shards")):
        with pytest.raises(UserError, match="leave --actions led out"):
            open_source(place, actions="led")
    with pytest.raises(UserError, match="leave --actions led out"):
        DMCVBDataset(tmp_path / "shards", 2, actions="led")
    with pytest.raises(UserError, match="unknown --actions 'lead'"):
        open_source(path, actions="lead")


def test_a_part_of_an_episode_says_nothing_of_its_ends(tmp_path, episodes):
    """DreamerV3 cuts its stream into files of fixed length: a file begins and ends anywhere."""
    whole = {name: np.concatenate([time_steps(*e, "follows")[name] for e in episodes]) for name in ("image", "action",
             "reward", "is_first", "is_last", "is_terminal")}  # fmt: skip
    frames = len(whole["image"])
    cuts = [0, 5, 11, 18, frames]
    for number, (first, last) in enumerate(pairwise(cuts)):
        np.savez(tmp_path / f"{number}.npz", **{name: column[first:last] for name, column in whole.items()})
    source = open_source(tmp_path)
    assert source.origin.stored == "follows"
    for episode in source.read():
        place = next(t for t in range(frames) if (whole["image"][t] == episode.observations[0]).all())
        np.testing.assert_array_equal(episode.actions, whole["action"][place : place + len(episode)])


def test_rewards_of_time_steps_may_follow_too(tmp_path, episodes):
    parts = [time_steps(*episode, "follows") for episode in episodes]
    for columns, (_, _, r) in zip(parts, episodes, strict=True):
        columns["reward"] = np.concatenate([r, np.zeros_like(r[:1])])
    assert_holds(open_source(npz_folder(tmp_path, parts)), episodes)


def test_manifests_of_format_1_are_read(tmp_path, episodes):
    shards = pack(layouts.hdf5_file(tmp_path, episodes), tmp_path / "shards")
    fields = json.loads((shards / "manifest.json").read_text())
    assert fields["version"] == 2
    del fields["origin"], fields["alignment"]
    old = parse_manifest(json.dumps(fields | {"version": 1}).encode(), "old")
    assert old.origin is None and old.alignment is None
    (shards / "manifest.json").write_text(json.dumps(fields | {"version": 1}))
    assert "an earlier release packed them so" in inspect(shards)


POSITIONS = {"first": [0], "middle": [1], "last": [3], "two": [1, 2], "all": [0, 1, 2, 3]}


def fragments(episodes, short):
    """Four episodes of which those numbered `short` have one frame and no action."""
    whole = iter([*episodes, episodes[0]])
    return [tuple(part[:count] for part, count in zip(next(whole), (1, 0, 0), strict=True)) if number in short
            else next(whole) for number in range(4)]  # fmt: skip


def dreamer_led(folder, episodes):
    return npz_folder(folder, [time_steps(*episode, "led") for episode in episodes])


def dreamer_follows(folder, episodes):
    parts = [time_steps(*episode, "follows") for episode in episodes]
    return hdf5_file(folder, parts)


def rlds_file(folder, episodes):
    features = [layouts.rlds_features(*episode) for episode in episodes]
    for (o, _, _), columns in zip(episodes, features, strict=True):
        if len(o) == 1:
            columns["steps/action"], columns["steps/reward"] = ([0.0] * 6, "float"), ([0.0], "float")
    return layouts.write_tfrecord(folder / "all.tfrecord", features)


@pytest.mark.parametrize("write", [dreamer_led, dreamer_follows, rlds_file], **by_name)
@pytest.mark.parametrize("position", POSITIONS)
def test_fragments_are_left_out_wherever_they_are(tmp_path, episodes, write, position):
    short = POSITIONS[position]
    parts = fragments(episodes, short)
    parts = [part if len(part[0]) > 1 else (part[0], episodes[0][1][:0], episodes[0][2][:0]) for part in parts]
    path = write(tmp_path, parts)
    if position == "all":
        with pytest.raises(UserError, match="all its 4 episodes have no action with a frame before and after it") as e:
            open_source(path)
        assert str(path) in str(e.value)
        return
    source = open_source(path)
    assert source.notes[-1].startswith(f"{len(short)} of 4 episodes too short")
    assert_holds(source, [part for number, part in enumerate(parts) if number not in short])
    assert load_manifest(pack(path, tmp_path / "shards", workers=1)).notes[-1] == source.notes[-1]
