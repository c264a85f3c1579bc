"""The made sequences are what they say: masks, motions, actions, and what is written."""

import numpy as np
import pytest
from synthetic import COLOURS, driven_square, jumping_square, jumps_of, moving_shapes

from aime_fast.data.store import open_store

MAKERS = {
    "one shape": lambda: moving_shapes(3, 9, objects=1),
    "two shapes": lambda: moving_shapes(3, 9, size=48),
    "textured": lambda: moving_shapes(3, 9, textured=True),
    "driven": lambda: driven_square(3, 9),
    "jumping": lambda: jumping_square(3, 9),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_masks_are_where_the_colours_are(make):
    made = make()
    for number in range(made.masks.shape[2]):
        coloured = (made.frames == COLOURS[number]).all(-1)
        np.testing.assert_array_equal(made.masks[:, :, number], coloured)
        assert made.masks[:, :, number].any()
    assert made.masks.sum(2).max() == 1, "a pixel shows one object"
    behind = ~made.masks.any(2)
    assert made.frames[behind].max() < 120 < COLOURS.max(1).min()
    # What is behind the objects stays: no frame differs from the first one in pixels that are free in both.
    free = behind & behind[:, :1]
    differs = (made.frames != made.frames[:, :1]).any(-1)
    assert not (differs & free).any()


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_the_seed_decides(make):
    one, two = make(), make()
    for name in ("frames", "actions", "masks", "positions", "modes"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert (driven_square(seed=1).frames != driven_square(seed=2).frames).any()


def test_shapes_move_by_themselves():
    made = moving_shapes(episodes=200, length=2)
    steps = np.diff(made.positions, axis=1)[:, 0]
    assert np.abs(steps).max() <= np.ceil(0.08 * 32) and (steps != 0).any(-1).mean() > 0.9
    correlation = np.corrcoef(steps.reshape(200, 4).T)
    # Five standard errors of a correlation of 200 independent pairs.
    assert np.abs(correlation - np.eye(4)).max() < 5 / np.sqrt(200)


def test_the_action_is_the_velocity():
    made = driven_square(episodes=20, length=12, speed=0.1)
    places = made.positions[:, :, 0]
    seen = np.stack([np.argwhere(mask).min(0) for mask in made.masks[:, :, 0].reshape(-1, 32, 32)])
    np.testing.assert_array_equal(seen.reshape(places.shape), places)
    inside = (places > 0) & (places < 32 - 8)
    free = inside[:, 1:] & inside[:, :-1]
    error = np.diff(places, axis=1) - made.actions[:, :-1] * 0.1 * 32
    assert free.mean() > 0.5
    # Both places are rounded to pixels.
    assert np.abs(error[free]).max() <= 1 + 1e-5


@pytest.mark.parametrize("modes", [1, 2, 3, 5])
def test_the_square_jumps_by_one_of_the_vectors(modes):
    made = jumping_square(episodes=30, modes=modes)
    vectors = jumps_of(modes, 32)
    assert len(np.unique(vectors, axis=0)) == modes and (vectors != 0).any(1).all()
    assert set(np.unique(made.modes)) == set(range(modes))
    for before, after, mode in zip(made.masks[0, :-1, 0], made.masks[0, 1:, 0], made.modes[0], strict=False):
        np.testing.assert_array_equal(np.roll(before, vectors[mode], (0, 1)), after)


@pytest.mark.parametrize("make", [lambda: moving_shapes(4, 5, size=48), lambda: driven_square(4, 20)])
def test_what_is_written_is_read(make, tmp_path):
    made = make()
    store = open_store(made.write(tmp_path / "made", val_episodes=1), "all")
    assert store.lengths == [made.frames.shape[1]] * 4 and store.image_size == made.frames.shape[2]
    windows = np.array([[episode, 0] for episode in range(4)])
    batch = store.gather(windows, made.frames.shape[1])
    np.testing.assert_array_equal(batch.observations.numpy(), made.frames)
    np.testing.assert_array_equal(batch.actions.numpy(), made.actions)
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
