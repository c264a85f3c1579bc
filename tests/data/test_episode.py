import numpy as np
import pytest

from aime_fast.data.episode import Episode
from aime_fast.errors import UserError


def fields(n=4):
    return {
        "observations": np.zeros((n, 64, 64, 3), np.uint8),
        "actions": np.zeros((n, 2), np.float32),
        "rewards": np.zeros(n, np.float32),
        "terminated": np.zeros(n, bool),
        "truncated": np.zeros(n, bool),
    }


def with_value(array, index, value):
    changed = array.copy()
    changed[index] = value
    return changed


def test_a_whole_episode_is_taken():
    episode = Episode(**fields(), name="x.h5, episode 3")
    assert len(episode) == 4
    assert episode.action_dim == 2


@pytest.mark.parametrize(
    ("key", "change", "words"),
    [
        ("observations", lambda a: a.astype(np.float32), "float32, expected uint8"),
        ("observations", lambda a: a.transpose(0, 3, 1, 2), "expected [4, 64, 64, 3]"),
        ("observations", lambda a: a[:, :32], "expected [4, 64, 64, 3]"),
        ("observations", lambda a: a[:0], "no frames"),
        ("actions", lambda a: a.astype(np.int64), "int64, expected float32"),
        ("actions", lambda a: a[:3], "3 actions for 4 frames"),
        ("actions", lambda a: a[:, 0], "expected [4, A]"),
        ("actions", lambda a: with_value(a, (2, 1), np.nan), "NaN or infinity at frame 2"),
        ("actions", lambda a: with_value(a, (0, 0), np.inf), "NaN or infinity at frame 0"),
        ("rewards", lambda a: with_value(a, 3, np.nan), "NaN or infinity at frame 3"),
        ("rewards", lambda a: a[:, None], "expected [4]"),
        ("rewards", lambda a: a[:2], "2 rewards for 4 frames"),
        ("terminated", lambda a: with_value(a, 1, True), "frame 1 of 4 is marked as the end"),
        ("truncated", lambda a: a.astype(np.uint8), "uint8, expected bool"),
    ],
)
def test_a_bad_field_is_named(key, change, words):
    bad = fields()
    bad[key] = change(bad[key])
    with pytest.raises(UserError) as error:
        Episode(**bad, name="x.h5, episode 3")
    assert "x.h5, episode 3" in str(error.value)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
