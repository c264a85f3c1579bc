"""Cases of what an action means, and of episodes of one row; each has the actions that must be read beside frames."""

import h5py
import numpy as np
from field_case import REFUSED, SAID, Case
from made_arrays import LENGTHS, hdf5, noise

GITHUB = "https://github.com/"
DREAMER = GITHUB + "danijar/dreamer/issues/8"
CQN = GITHUB + "younggyoseo/CQN-AS/issues/5"
D3RLPY = GITHUB + "takuseno/d3rlpy/issues/127"
WORLDMODEL = GITHUB + "galilai-group/stable-worldmodel/"
ONE = "1 of 3 episodes too short for an action between two frames: left out"


def episodes(zero=(), lengths=(*LENGTHS, 8), rest=0):
    """Columns of time steps of episodes of noise; actions of the rows `zero` of each are zero, and of `rest` more."""
    parts = []
    for number, length in enumerate(lengths):
        frames, actions = noise(length, seed=number)
        actions[[row for row in zero if row < length]] = 0
        actions[1 : 1 + rest] = 0
        rows = np.arange(length)
        parts.append(
            dict(image=frames, action=actions, reward=np.zeros(length, np.float32), is_first=rows == 0)
            | dict(is_last=rows == length - 1, is_terminal=np.zeros(length, bool))
        )
    return parts


def npz(folder, parts):
    for number, part in enumerate(parts):
        np.savez(folder / f"20260101T00000{number}-abc-{len(part['image'])}.npz", **part)
    return folder


def v_d4rl(folder, parts):
    """One HDF5 file, channels first, with `step_type` 0, 1, ..., 1, 2 and `discount`."""
    with h5py.File(folder / "data.hdf5", "w") as file:
        joined = {name: np.concatenate([part[name] for part in parts]) for name in ("image", "action", "reward")}
        steps = [np.where(part["is_first"], 0, np.where(part["is_last"], 2, 1)) for part in parts]
        file["observation"], file["action"] = np.moveaxis(joined["image"], -1, 1), joined["action"]
        file["reward"], file["step_type"] = joined["reward"], np.concatenate(steps)
        file["discount"] = np.ones(len(joined["reward"]), np.float32)
    return folder / "data.hdf5"


def own(folder, zero):
    """A file without columns of time steps."""
    frames, actions = noise()
    actions[zero] = 0
    return hdf5(folder / "own.h5", observations=frames, actions=actions)


def frames_of(parts):
    """All frames but the last of each episode, after which nothing was done."""
    return lambda: np.concatenate([part["image"][:-1] for part in parts])


def led(parts):
    """The actions of the next row."""
    return lambda: np.concatenate([part["action"][1:] for part in parts])


def follows(parts):
    """The actions of the same row."""
    return lambda: np.concatenate([part["action"][:-1] for part in parts])


def read(name, write, parts, wanted, words, source, *options):
    """A case that is read; `write` and `wanted` take the episodes."""
    return Case(name, lambda f: write(f, parts), SAID, words, source, frames_of(parts), options, actions=wanted(parts))


def refused(name, write, parts, words, source, *options):
    return Case(name, lambda f: write(f, parts), REFUSED, words, source, options=options)


FIRST, LAST, BOTH, NEITHER = (episodes(zero) for zero in ((0,), (-1,), (0, -1), ()))
IDLE = episodes((0,), rest=3)
ASKED = "nothing shows whether actions led to or follow the frame of their row"


def fragment(zero, place):
    """Episodes of which one has one row."""
    return episodes(zero, [1 if number == place else 7 + number for number in range(3)])


ACTIONS = [
    read("dreamer-v1-v2-npz", npz, FIRST, led, "led to the frame of their row: they are zero on 3 of 3 first", DREAMER),
    read(
        "dreamer-v3-npz",
        npz,
        LAST,
        follows,
        "follow the frame of their row: they are zero on 0 of 3 first rows and on 3 of 3 last",
        GITHUB + "danijar/dreamerv2/issues/58",
    ),
    read(
        "v-d4rl-hdf5",
        v_d4rl,
        FIRST,
        led,
        "led to the frame of their row",
        GITHUB + "RajGhugare19/dreamerv2/issues/4",
    ),
    read("step-type-follows", v_d4rl, LAST, follows, "follow the frame of their row", WORLDMODEL + "issues/293"),
    refused("undecided-no-zeros", npz, NEITHER, ASKED, CQN),
    refused("undecided-both-ends", v_d4rl, BOTH, ASKED, GITHUB + "CIntellifusion/MultiWorld/issues/6"),
    refused("undecided-at-rest", npz, IDLE, ASKED, GITHUB + "huggingface/lerobot/issues/315"),
    read("undecided-told-led", npz, NEITHER, led, "--actions led says so", CQN, "--actions", "led"),
    read("undecided-told-follows", v_d4rl, BOTH, follows, "--actions follows says so", CQN, "--actions", "follows"),
    Case(
        "own-that-looks-led",
        lambda f: own(f, [0, LENGTHS[0]]),
        REFUSED,
        "actions look as if they led to the frame of their row",
        GITHUB + "Lifelong-Robot-Learning/LIBERO/issues/54",
    ),
    Case(
        "own-that-follows",
        lambda f: own(f, [LENGTHS[0] - 1, -1]),
        SAID,
        "follow the frame of their row",
        GITHUB + "Farama-Foundation/D4RL/issues/31",
        lambda: noise()[0],
        actions=lambda: noise()[1] * ~np.isin(np.arange(16), [LENGTHS[0] - 1, 15])[:, None],
    ),
    *(
        read(f"one-row-{name}", npz, fragment((0,), place), led, ONE, source)
        for name, place, source in (
            ("first", 0, D3RLPY),
            ("in-the-middle", 1, WORLDMODEL + "pull/102"),
            ("last", 2, GITHUB + "danijar/dreamerv2/issues/19"),
        )
    ),
    read("one-row-last-v-d4rl", v_d4rl, fragment((0,), 2), led, ONE, D3RLPY),
    refused(
        "one-row-all",
        npz,
        episodes((), (1, 1, 1)),
        "all its 3 episodes have no action with a frame before and after it",
        GITHUB + "danijar/dreamer/issues/47",
    ),
]
