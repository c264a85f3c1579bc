"""The kept states restart the simulation, survive packing, and are checked when they are read."""

import json
from importlib.util import find_spec

import numpy as np
import pytest

from aime_fast.data.collect import collect as collect_module
from aime_fast.data.collect.collect import collect
from aime_fast.data.collect.collector_pool import FuturesPool, make_simulation
from aime_fast.data.collect.simulation import Choices
from aime_fast.data.packing.inspection import inspect
from aime_fast.data.packing.pack import pack
from aime_fast.data.shards.manifest import load_manifest
from aime_fast.data.shards.states import STATES, StateLayout, read_states
from aime_fast.data.store import open_store
from aime_fast.doctor import choose_graphics
from aime_fast.doctor.graphics import INSTALL
from aime_fast.errors import UserError
from aime_fast.evaluation.share import other_futures
from aime_fast.evaluation.windows import make_windows
from benchmarks.horizon.readable import views

LENGTH, EPISODES = 18, 3
CHOICES = dict(episodes=EPISODES, length=LENGTH, seed=3, val_episodes=2, processes=1)


@pytest.fixture(scope="module")
def graphics():
    if find_spec("dm_control") is None:
        pytest.skip(INSTALL)
    working, results = choose_graphics()
    if working is None:
        pytest.skip(results[0].line)
    return working


@pytest.fixture(scope="module", params=["reacher_easy", "cheetah_run"])
def recorded(request, graphics, tmp_path_factory):
    """A task that changes its model with each episode (the target), and one with contacts and a camera that follows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collect_module, "choose_graphics", lambda: (graphics, []))
        return collect(request.param, tmp_path_factory.mktemp("states") / "shards", **CHOICES)


def of(folder):
    return read_states(folder, load_manifest(folder))


def test_a_kept_state_restarts_the_simulation_to_the_same_frames(recorded, graphics):
    kept, store = of(recorded), open_store(recorded, "all")
    whole = store.gather(np.array([[e, 0] for e in range(EPISODES)]), LENGTH)
    choices = Choices(**{name: kept.collection[name] for name in Choices.__dataclass_fields__})
    # From the middle, then from the start: nothing is left of what was simulated before.
    starts = [(e, [(kept.of(e)[t], whole.actions[e, t:-1].numpy()) for t in (7, 0)]) for e in range(EPISODES)]
    with FuturesPool(choices, graphics, 1) as pool:
        made = {number: frames for _, number, frames in pool.run(starts) if number is not None}
    for e in range(EPISODES):
        for t, frames in zip((7, 0), made[e], strict=True):
            np.testing.assert_array_equal(frames, whole.observations[e, t + 1 :].numpy())


def test_kept_states_are_drawn_again_as_they_were_recorded(recorded, graphics):
    kept, store = of(recorded), open_store(recorded, "all")
    simulation = make_simulation(Choices.of(kept.collection), graphics)
    for number in (2, 0):
        frames = simulation.redraw(number, kept.of(number)[3:9])
        np.testing.assert_array_equal(frames, store.gather(np.array([[number, 3]]), 6).observations[0].numpy())


def test_bodies_are_seen_where_the_joints_put_them(recorded, graphics):
    kept = of(recorded)
    states = kept.of(1)
    bodies = make_simulation(Choices.of(kept.collection), graphics).bodies(1, states)
    places, turns = bodies[..., :3], bodies[..., 3:].reshape(*bodies.shape[:2], 3, 3)
    np.testing.assert_allclose(turns @ turns.swapaxes(-1, -2), np.broadcast_to(np.eye(3), turns.shape), atol=1e-12)
    joints = dict(zip(kept.layout.positions, states[:, 1:].T, strict=False))
    if "wrist" in joints:  # bodies arm and hand: a link of 12 cm between them, and the wrist's angle
        np.testing.assert_allclose(np.linalg.norm(places[:, 1] - places[:, 0], axis=-1), 0.12, atol=1e-12)
        between = (turns[:, 0].swapaxes(-1, -2) @ turns[:, 1]).trace(axis1=1, axis2=2)
        np.testing.assert_allclose(between, 1 + 2 * np.cos(joints["wrist"]), atol=1e-12)
    else:  # the camera follows the torso, which turns in the camera's plane
        pitch = turns[:, 0] @ turns[0, 0].T
        moved = joints["rooty"] - joints["rooty"][0]
        np.testing.assert_allclose(pitch.trace(axis1=1, axis2=2), 1 + 2 * np.cos(moved), atol=1e-12)


def test_views_stand_beside_the_positions_of_the_same_frames(recorded, graphics):
    kept = of(recorded)
    seen, names, positions = views(make_simulation(Choices.of(kept.collection), graphics), kept, [0, 2], 3)
    assert len(seen) == len(positions) == 2 * LENGTH // 3
    assert (names, positions.shape[1]) == (kept.layout.seen_positions(kept.of(0))[0], len(names))
    wanted = kept.layout.seen_positions(kept.of(2)[::3])[1]
    np.testing.assert_array_equal(positions[LENGTH // 3 :].numpy(), wanted)


def test_other_actions_lead_elsewhere_and_the_own_ones_back(recorded):
    windows = make_windows(open_store(recorded, "val"), 8, 5)
    kept, numbers = of(recorded), [entry.id for entry in load_manifest(recorded).entries("val", recorded)]
    assert numbers == [1, 2]
    frames, difference = other_futures(windows, numbers, kept, context=3)
    assert difference == 0
    assert frames.shape == (len(windows), 5, 64, 64, 3)
    own = windows.batch(np.arange(len(windows))).observations[:, 3:]
    assert (frames != own).flatten(2).any(2)[:, -1].all()
    # A window alone is its own partner: its "other" future is its own.
    alone = make_windows(open_store(recorded, "val"), LENGTH, LENGTH, limit=1)
    frames, _ = other_futures(alone, numbers, kept, context=3)
    np.testing.assert_array_equal(frames, alone.batch(np.arange(1)).observations[:, 3:].numpy())


def test_frames_that_were_resized_cannot_be_simulated_again_and_say_so(recorded, tmp_path):
    small = pack(recorded, tmp_path / "small", size=32, val_episodes=2)
    windows = make_windows(open_store(small, "val"), 10, 4)
    with pytest.raises(UserError, match="frames of 32 pixels were made of 64"):
        other_futures(windows, [1, 2], of(small), 5)


def test_states_are_kept_when_shards_are_packed_again(recorded, tmp_path):
    packed = pack(recorded, tmp_path / "packed", codec="png", workers=2)
    np.testing.assert_array_equal(of(packed).states, of(recorded).states)
    assert of(packed).layout == of(recorded).layout
    assert f"states         of the simulator, in {STATES}" in inspect(packed, deep=True)


def test_shards_whose_states_were_left_behind_are_read_and_packed_and_say_so(recorded, tmp_path):
    folder = pack(recorded, tmp_path / "packed")
    (folder / STATES).unlink()
    assert open_store(folder, "all").lengths == [LENGTH] * EPISODES
    with pytest.raises(UserError, match=r"states.npy: missing or damaged .*; copy it again, or collect again"):
        of(folder)
    assert "states.npy is missing, so the simulator's states are lost" in inspect(folder)
    again = pack(folder, tmp_path / "again")
    assert "states.npy is missing" in inspect(again)
    with pytest.raises(UserError, match="no simulator's states are kept"):
        of(again)


def test_damage_is_one_line(recorded, tmp_path):
    folder = pack(recorded, tmp_path / "packed")
    content = bytearray((folder / STATES).read_bytes())
    content[-5] ^= 1
    (folder / STATES).write_bytes(content)
    with pytest.raises(UserError, match="wrong sha256"):
        of(folder)


def test_a_recording_without_states_says_so():
    from aime_fast.data.files import SAMPLE

    with pytest.raises(UserError, match="no simulator's states are kept in it; record them with `aime-fast collect`"):
        of(SAMPLE)


def test_columns_are_the_simulator_s_coordinates(recorded):
    kept = of(recorded)
    states, layout = kept.of(0), kept.layout
    assert states.shape[0] == LENGTH
    # The first column is the time: an action lasts two steps.
    steps = np.diff(states[:, 0])
    np.testing.assert_allclose(steps, steps[0])
    names, positions = layout.seen_positions(states)
    _, velocities = layout.moving_velocities(states)
    if load_manifest(recorded).environment == "reacher_easy":
        assert names == ["sin shoulder", "cos shoulder", "wrist"]
        np.testing.assert_allclose(positions[:, 0], np.sin(states[:, 1]))
        wrist, speed = positions[:, 2], velocities[:, 1]
    else:
        assert layout.unseen == ["rootx"] and layout.angles == ["rooty"]
        assert names[:3] == ["rootz", "sin rooty", "cos rooty"]
        assert len(layout.positions) == len(layout.velocities) == 9
        wrist, speed = states[:, 1], velocities[:, 0]
    # A step adds its end's velocity to the position, and a frame has two: their mean, the first one interpolated.
    change = np.diff(wrist) / steps[0]
    assert np.corrcoef(change, (speed[:-1] + 3 * speed[1:]) / 4)[0, 1] > 0.95


def test_old_manifests_and_layouts_of_free_bodies():
    layout = StateLayout(["root x", "root qw", "knee"], ["root vx", "knee"], [], ["root x"])
    states = np.arange(12.0).reshape(2, 6)
    names, values = layout.seen_positions(states)
    assert names == ["root qw", "knee"]
    assert values.tolist() == [[2, 3], [8, 9]]
    assert layout.moving_velocities(states)[1].tolist() == [[4, 5], [10, 11]]


def test_the_manifest_stays_readable_for_older_releases(recorded):
    """The states are named in the free record of the collection, not in a new field."""
    fields = json.loads((recorded / "manifest.json").read_text())
    assert "states" not in fields and "state" not in fields
    assert fields["collection"]["state"].keys() == {"positions", "velocities", "angles", "unseen", "sha256"}
