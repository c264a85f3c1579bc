"""Cases in files of arrays: HDF5, npz and .pt."""

import h5py
import numpy as np
from field_case import REFUSED, SAID, Case
from made_arrays import (
    aloha,
    columns,
    dreamer_npz,
    groups,
    hdf5,
    minari_file,
    noise,
    pointer,
    smooth,
    torch_of_objects,
    unknown_filter,
    without_actions,
)

GITHUB = "https://github.com/"


def frames():
    return noise()[0]


def large(size, channels=3):
    return noise(size=size, channels=channels)[0]


def areas(images):
    """Means over areas, for sizes of which 64 is a part."""
    n, height, width, _ = images.shape
    return np.rint(images.reshape(n, 64, height // 64, 64, width // 64, 3).mean((2, 4))).astype(np.uint8)


def three(images):
    """Each frame with the two before it, oldest first: [N,H,W,9]."""
    before = [images[[max(t - k, 0) for t in range(len(images))]] for k in (2, 1, 0)]
    return np.concatenate(before, -1)


def first(images):
    return np.moveaxis(images, -1, 1)


def two():
    return {"agentview_image": noise()[0], "robot0_eye_in_hand_image": 255 - noise()[0]}


def nan_actions():
    actions = noise()[1]
    actions[3] = np.nan
    return actions


def linked(path):
    with h5py.File(path, "r+") as file:
        for name in ("a", "b", "c"):
            file[f"data/{name}"] = file["data"]
            file[f"mask/{name}"] = h5py.SoftLink("/mask")
    return path


ROBOMIMIC = GITHUB + "ARISE-Initiative/robomimic/issues/"

FILES = [
    # robomimic, LIBERO, ALOHA and others that keep episodes in groups
    Case(
        "robomimic-one-camera",
        lambda f: groups(f, {"agentview_image": frames()}),
        SAID,
        "each group with actions is an episode: 2, data/demo_9 to data/demo_10",
        GITHUB + "j96w/MimicPlay/issues/12",
        frames,
    ),
    Case(
        "robomimic-two-cameras",
        lambda f: groups(f, two()),
        REFUSED,
        "--camera`: agentview_image, robot0_eye_in_hand_image",
        ROBOMIMIC + "131",
    ),
    Case(
        "robomimic-camera-chosen",
        lambda f: groups(f, two()),
        SAID,
        "each group",
        ROBOMIMIC + "126",
        lambda: 255 - frames(),
        ("--camera", "robot0_eye_in_hand_image"),
    ),
    Case("robomimic-low-dim", lambda f: groups(f, {}), REFUSED, "has actions but no pictures", ROBOMIMIC + "138"),
    Case(
        "robomimic-success-before-end",
        lambda f: groups(f, {"agentview_image": frames()}, dones=np.arange(16) % 5 == 4),
        SAID,
        "each group",
        GITHUB + "irom-princeton/dppo/issues/32",
        frames,
    ),
    Case(
        "robomimic-cut-demo",
        lambda f: groups(f, {"agentview_image": frames()}, cut=1),
        REFUSED,
        "demo_9/obs/agentview_image has 8 frames for 9 actions",
        GITHUB + "robocasa/robocasa/issues/124",
    ),
    Case(
        "libero-128",
        lambda f: groups(f, {"agentview_rgb": large((128, 128)), "eye_in_hand_rgb": large((128, 128))}),
        SAID,
        "128x128 were resized to 64x64",
        GITHUB + "Lifelong-Robot-Learning/LIBERO/issues/52",
        lambda: areas(large((128, 128))),
        ("--camera", "agentview_rgb"),
    ),
    Case("aloha-raw", aloha, REFUSED, "--camera`: cam_high, cam_low", GITHUB + "huggingface/lerobot/issues/769"),
    Case(
        "aloha-camera-chosen",
        aloha,
        SAID,
        "no rewards were recorded",
        GITHUB + "OpenDriveLab/kai0/issues/24",
        lambda: 255 - frames(),
        ("--camera", "cam_low"),
    ),
    Case(
        "aloha-padded-jpeg",
        lambda f: aloha(f, "padded", smooth()),
        SAID,
        "swapped red and blue",
        GITHUB + "MarkFzp/mobile-aloha/issues/10",
        smooth,
        error=2.0,
    ),
    Case(
        "jpeg-of-any-length",
        lambda f: aloha(f, "vlen", smooth()),
        SAID,
        "decoded from JPEG",
        GITHUB + "RogerQi/human-policy/issues/11",
        smooth,
        error=2.0,
    ),
    Case(
        "minari-file-alone",
        minari_file,
        REFUSED,
        "a file of a Minari data set; give the folder",
        GITHUB + "Farama-Foundation/Minari/issues/204",
    ),
    Case(
        "droid-without-pictures",
        without_actions,
        REFUSED,
        "it holds action/joint_position, observation/robot_state/q",
        GITHUB + "droid-dataset/droid/issues/54",
    ),
    Case(
        "group-that-links-to-itself",
        lambda f: linked(groups(f, {"agentview_image": frames()})),
        SAID,
        "2, data/demo_9 to data/demo_10",
        GITHUB + "PyTables/PyTables/issues/794",
        frames,
    ),
    # files that are not what they seem
    Case(
        "lfs-hdf5",
        lambda f: pointer(f / "demo.hdf5"),
        REFUSED,
        "run `git lfs pull`",
        GITHUB + "aiqm/torchani/issues/168",
    ),
    Case(
        "lfs-npz-folder",
        lambda f: pointer(f / "a.npz").parent,
        REFUSED,
        "a.npz: a Git LFS pointer",
        GITHUB + "albert597/TRAILMAP/issues/3",
    ),
    Case(
        "unknown-hdf5-filter", unknown_filter, REFUSED, "run pip install hdf5plugin", GITHUB + "h5py/h5py/issues/2294"
    ),
    Case(
        "npz-of-objects",
        lambda f: dreamer_npz(f, action=np.array([{}] * 16)),
        REFUSED,
        "action.npy holds Python objects, which could run code",
        GITHUB + "openai/baselines/issues/1142",
    ),
    Case("torch-of-objects", torch_of_objects, REFUSED, "save a dict", GITHUB + "pytorch/tensordict/issues/1363"),
    # pictures that are not uint8 RGB of 64x64
    Case(
        "floats-0-to-1",
        lambda f: columns(f, lambda x: x.astype(np.float32) / 255),
        REFUSED,
        "from 0 to 1, expected uint8; multiply by 255",
        GITHUB + "DLR-RM/stable-baselines3/issues/1162",
    ),
    Case(
        "floats-0-to-255",
        lambda f: columns(f, lambda x: x.astype(np.float32)),
        REFUSED,
        "from 0 to 255, expected uint8; round them",
        GITHUB + "hill-a/stable-baselines/issues/328",
    ),
    Case(
        "floats-minus-1-to-1",
        lambda f: columns(f, lambda x: x.astype(np.float32) / 127.5 - 1),
        REFUSED,
        "add 1, multiply by 127.5",
        GITHUB + "Eclectic-Sheep/sheeprl/pull/214",
    ),
    Case(
        "floats-cut-to-integers",
        lambda f: columns(f, lambda x: (x / 255).round().astype(np.uint8)),
        SAID,
        "every pixel looked at is 0 or 1",
        GITHUB + "DLR-RM/stable-baselines3/issues/1162",
        lambda: (frames() / 255).round().astype(np.uint8),
    ),
    Case(
        "stack-of-3-first",
        lambda f: columns(f, lambda x: first(three(x))),
        REFUSED,
        "a stack of 3 frames in 9 channels; take the last with `aime-fast pack --last-of-stack`",
        GITHUB + "DLR-RM/stable-baselines3/issues/387",
    ),
    Case(
        "stack-of-3-chosen",
        lambda f: columns(f, lambda x: first(three(x))),
        SAID,
        "the last one was taken",
        GITHUB + "ManifoldRG/MultiNet/pull/275",
        frames,
        ("--last-of-stack",),
    ),
    Case(
        "stack-of-4-last",
        lambda f: columns(f, lambda x: np.concatenate([x[:1].repeat(16, 0), three(x)], -1)),
        SAID,
        "a stack of 4 frames in 12 channels",
        GITHUB + "HorizonRobotics/alf/issues/645",
        frames,
        ("--last-of-stack",),
    ),
    Case(
        "stack-in-an-axis",
        lambda f: columns(f, lambda x: np.stack([255 - x, x], 1)),
        SAID,
        "a stack of 2 frames: the last one",
        GITHUB + "chandar-lab/RLHive/issues/44",
        frames,
        ("--last-of-stack",),
    ),
    Case(
        "grey",
        lambda f: columns(f, lambda x: x[..., :1]),
        REFUSED,
        "have 1 channels, expected 3",
        GITHUB + "ray-project/ray/issues/9624",
    ),
    Case(
        "five-channels",
        lambda f: columns(f, lambda x: np.concatenate([x, x[..., :2]], -1)),
        REFUSED,
        "have 5 channels, expected 3",
        GITHUB + "Eclectic-Sheep/sheeprl/issues/229",
    ),
    Case(
        "without-channels",
        lambda f: columns(f, lambda x: x[..., 0]),
        REFUSED,
        "record RGB as uint8 [N,H,W,3]",
        GITHUB + "ray-project/ray/issues/9624",
    ),
    Case(
        "not-square",
        lambda f: columns(f, lambda _: large((128, 192))),
        SAID,
        "they are not square, so shapes are stretched",
        GITHUB + "huggingface/lerobot/issues/2158",
        lambda: areas(large((128, 192))),
        error=0.2,
    ),  # sums of six are often halves
    # episodes and columns
    Case(
        "no-ends-marked",
        lambda f: columns(f, lambda x: x, episode_ends=None),
        SAID,
        "nothing marks where episodes end: the file is one episode",
        GITHUB + "Farama-Foundation/D4RL/issues/40",
        frames,
    ),
    Case(
        "last-episode-not-ended",
        lambda f: columns(f, lambda x: x, episode_ends=None, terminals=np.arange(16) == 8, timeouts=np.zeros(16, bool)),
        SAID,
        "no rewards",
        GITHUB + "tinkoff-ai/CORL/issues/43",
        frames,
    ),
    Case(
        "time-outs-only",
        lambda f: columns(
            f, lambda x: x, episode_ends=None, terminals=np.zeros(16, bool), timeouts=np.arange(16) % 8 == 7
        ),
        SAID,
        "no rewards",
        GITHUB + "Farama-Foundation/D4RL/issues/85",
        frames,
    ),
    Case(
        "flags-one-longer",
        lambda f: dreamer_npz(f, is_last=np.arange(17) == 16),
        REFUSED,
        "17 dones for 16 frames",
        GITHUB + "pytorch/rl/issues/1833",
    ),
    Case(
        "dreamer-chunk-without-image",
        lambda f: dreamer_npz(f, image=None),
        REFUSED,
        "no observations",
        GITHUB + "danijar/dreamerv3/issues/162",
    ),
    Case(
        "nan-actions",
        lambda f: hdf5(f / "own.h5", observations=frames(), actions=nan_actions()),
        REFUSED,
        "actions hold NaN or infinity at frame 3",
        GITHUB + "danijar/dreamerv3/issues/26",
    ),
    Case(
        "actions-of-words",
        lambda f: hdf5(f / "own.h5", observations=frames(), actions=np.array([b"left"] * 16)),
        REFUSED,
        "actions are",
        GITHUB + "danijar/dreamerv3/issues/36",
    ),
]
