"""What recordings should not hold: each becomes one line that names the file, and the episode where one is known."""

import io
import json
import pickle
import random
import zipfile

import h5py
import numpy as np
import pytest
import written_layouts as layouts

from aime_fast.commands.main import main
from aime_fast.data.packing.pack import pack
from aime_fast.data.sources import open_source
from aime_fast.errors import UserError


@pytest.fixture(scope="module")
def episodes():
    return layouts.sample_episodes([6, 3, 4])


def refusal(path, words="", **options):
    with pytest.raises(UserError) as error:
        list(open_source(path, **options).read())
    message = str(error.value)
    assert words in message
    assert "\n" not in message
    return message


class Trap:
    """Unpickling this creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_an_npz_never_runs_code(tmp_path, episodes):
    layouts.dreamer_folder(tmp_path, episodes)
    path = next(tmp_path.iterdir())
    data = dict(np.load(path))
    for name in ("action", "is_last"):
        np.savez(path, **data | {name: np.array([Trap(tmp_path / "sprung")] * len(data["image"]), object)})
        assert str(path) in refusal(tmp_path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("image.npy", pickle.dumps(Trap(tmp_path / "sprung")))
    assert str(path) in refusal(tmp_path)
    assert not (tmp_path / "sprung").exists()


FILES = [layouts.hdf5_file, layouts.torch_file, layouts.v_d4rl_file, layouts.dmc_vb_file, layouts.rlds_gzip]


@pytest.mark.parametrize("layout", [*FILES, layouts.rlds_zlib], ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("keep", [0.2, 0.9, -1])
def test_a_cut_file_is_named(tmp_path, episodes, layout, keep):
    path = layout(tmp_path, episodes)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))] if keep > 0 else whole[:keep])
    assert path.name in refusal(path)


@pytest.mark.parametrize(
    ("layout", "pattern"),
    [
        (layouts.hdf5_folder, "*.hdf5"),
        (layouts.dreamer_folder, "*.npz"),
        (layouts.rlds_folder, "1.0.0/*tfrecord*"),
        (layouts.minari_folder, "data/*"),
        (layouts.lerobot_folder, "**/*.parquet"),
        (layouts.lerobot_folder, "**/*.mp4"),
        (layouts.lerobot_folder, "meta/info.json"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_cut_file_of_a_folder_is_refused(tmp_path, episodes, layout, pattern):
    layout(tmp_path, episodes)
    paths = sorted(tmp_path.glob(pattern))
    assert paths
    for path in paths:
        whole = path.read_bytes()
        # A TFRecord file of no bytes is one without records, and the last bytes of a video need not matter.
        for length in (0, len(whole) // 2, len(whole) - 2)["tfrecord" in path.name :][
            : 2 if path.suffix == ".mp4" else 3
        ]:
            path.write_bytes(whole[:length])
            assert str(tmp_path) in refusal(tmp_path, format=None)
        path.write_bytes(whole)
    assert len(list(open_source(tmp_path).read())) == 3


@pytest.mark.parametrize("layout", [layouts.dreamer_folder, layouts.rlds_folder, layouts.rlds_zlib, layouts.torch_file])
def test_a_flipped_bit_is_found_or_harmless(tmp_path, episodes, layout):
    """These formats carry checksums of everything that is read."""
    path = layout(tmp_path, episodes)
    whole_source = [
        (e.observations.tobytes(), e.actions.tobytes(), e.rewards.tobytes()) for e in open_source(path).read()
    ]
    files = [file for file in tmp_path.rglob("*") if file.is_file() and file.suffix not in (".json", "")]
    draw, refused = random.Random(0), 0
    for _ in range(60):
        file = draw.choice(files)
        whole = file.read_bytes()
        damaged = bytearray(whole)
        damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        file.write_bytes(damaged)
        try:
            found = [
                (e.observations.tobytes(), e.actions.tobytes(), e.rewards.tobytes()) for e in open_source(path).read()
            ]
            assert found == whole_source
        except UserError as error:
            assert str(tmp_path) in str(error)
            refused += 1
        file.write_bytes(whole)
    assert refused > 20


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(action=np.full((7, 6), np.nan, np.float32)), "episode 0: actions hold NaN"),
        (dict(action=np.zeros((7, 6), np.int64)), "actions are int64, expected float32"),
        (dict(action=np.zeros(7, np.float32)), "actions have shape [6]"),
        (dict(action=np.zeros((6, 6), np.float32)), "6 actions for 7 frames"),
        (dict(reward=np.full(7, np.inf)), "rewards hold NaN or infinity"),
        (dict(image=np.zeros((7, 64, 64, 3), np.float32)), "its pictures are float32 from 0 to 0, expected uint8"),
        (dict(image=np.zeros((7, 64, 64, 1), np.uint8)), "its pictures have 1 channels, expected 3"),
        (dict(image=np.zeros((7, 17), np.float32)), "no pictures; record uint8 [N,H,W,3]"),
        (dict(image=np.zeros((0, 64, 64, 3), np.uint8)), "7 actions for 0 frames"),
        (dict(image=None), "no observations"),
        (dict(is_last=np.zeros((7, 2), bool)), "expected one truth value or number a frame"),
    ],
)
def test_wrong_columns(tmp_path, episodes, change, words):
    layouts.dreamer_folder(tmp_path, episodes)
    path = min(tmp_path.iterdir())
    data = {name: array for name, array in (dict(np.load(path)) | change).items() if array is not None}
    np.savez(path, **data)
    assert path.name in refusal(tmp_path, words)


def test_columns_without_rewards_are_read_and_the_reward_task_is_refused(tmp_path, episodes, capsys):
    folder = tmp_path / "recording"
    folder.mkdir()
    layouts.dreamer_folder(folder, episodes)
    for path in folder.iterdir():
        np.savez(path, **{name: array for name, array in dict(np.load(path)).items() if name != "reward"})
    found = open_source(folder)
    assert not found.has_rewards and found.notes[-1] == "no rewards were recorded: they are zero"
    assert not any(episode.rewards.any() for episode in found.read())
    out, flags = tmp_path / "run", ["--preset", "debug", "--steps", "1", "--loader.sequence_length", "2"]
    code = main(["train", *flags, "--data", str(folder), "--out", str(out), "--tasks", "elbo,reward"])
    assert code == 2 and not out.exists()
    assert "has no rewards, which task 'reward' needs" in capsys.readouterr().err


def test_episodes_with_nothing_in_them(tmp_path, episodes):
    layouts.dreamer_folder(tmp_path, episodes)
    path = min(tmp_path.iterdir())
    data = dict(np.load(path))
    np.savez(path, **{name: array[:1] for name, array in data.items()})
    assert open_source(tmp_path).notes[-1].startswith("1 of 3 episodes too short")
    np.savez(path, **{name: array[:0] for name, array in data.items()})
    assert len(open_source(tmp_path).lengths) == 2
    refusal(path, "there are no frames in it")
    features = layouts.rlds_features(episodes[0][0][:1], episodes[0][1][:0], episodes[0][2][:0])
    features["steps/action"] = ([0.0] * 6, "float")
    path = layouts.write_tfrecord(tmp_path / "r.tfrecord", [features])
    refusal(path, "its only episode has no action with a frame before and after it")
    path.write_bytes(b"")
    refusal(path, "there is no record in it")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.pop("steps/reward"), "episode 1: no steps/reward; it holds steps/action"),
        (lambda f: f.pop("steps/observation/pixels"), "no steps/observation/pixels"),
        (lambda f: f["steps/action"][0].pop(), "do not make steps"),
        (lambda f: f["steps/reward"][0].pop(), "do not make steps"),
        (lambda f: f["steps/is_last"][0].pop(), "steps/is_last for 4 steps"),
        (lambda f: f["steps/is_last"][0].__setitem__(1, 1), "step 1 of 4 is marked as the last"),
        (lambda f: f["steps/action"][0].__setitem__(0, float("nan")), "episode 1: actions hold NaN"),
        (lambda f: f["steps/observation/pixels"][0].__setitem__(1, b"\x89PNG...."), "the picture of step 1 is damaged"),
        (lambda f: f["steps/observation/pixels"][0].__setitem__(1, b"x" * 100), "the picture of step 1 is damaged"),
        (lambda f: f["steps/observation/pixels"][0].__setitem__(1, b"x" * 48), "pictures have several sizes"),
    ],
)
def test_wrong_records(tmp_path, episodes, change, words):
    features = [layouts.rlds_features(*episode) for episode in episodes]
    change(features[1])
    path = layouts.write_tfrecord(tmp_path / "r.tfrecord", features)
    assert str(path) in refusal(path, words)


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(codebase_version="v2.1"), "LeRobot v2.1, not v3; convert it"),
        (lambda m: m["features"].pop("observation.images.top"), "there are no pictures in it"),
        (lambda m: m["features"].pop("action"), "cannot be read as LeRobot v3"),
        (lambda m: m["features"]["action"].update(dtype="string"), "actions are string, expected floats"),
        (lambda m: m.update(fps=0), "fps is 0"),
        (lambda m: m.update(fps=30), "has 20 frames a second, but meta/info.json says fps 30"),
        (lambda m: m.update(data_path="data/{nowhere}.parquet"), "cannot be read as LeRobot v3"),
        (
            lambda m: m.update(video_path="videos/none.mp4"),
            "none.mp4 is frame 0, but the episodes before it end at frame 6",
        ),
    ],
)
def test_a_wrong_lerobot_description(tmp_path, episodes, change, words):
    layouts.lerobot_folder(tmp_path, episodes)
    edit_json(tmp_path / "meta" / "info.json", change)
    refusal(tmp_path, words)


def test_a_lerobot_path_does_not_leave_the_folder(tmp_path, episodes):
    (tmp_path / "set").mkdir()
    layouts.lerobot_folder(tmp_path / "set", episodes)
    (tmp_path / "set" / "data").rename(tmp_path / "data")
    for path in ("../data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet", f"{tmp_path}/data/x.parquet"):
        edit_json(tmp_path / "set" / "meta" / "info.json", lambda m, path=path: m.update(data_path=path))
        refusal(tmp_path / "set", "leads out of the folder")


def test_lerobot_without_rewards_says_so(tmp_path, episodes):
    layouts.lerobot_folder(tmp_path, episodes)
    edit_json(tmp_path / "meta" / "info.json", lambda m: m["features"].pop("next.reward"))
    found = open_source(tmp_path)
    assert found.notes[-1] == "no rewards were recorded: they are zero"
    assert not any(episode.rewards.any() for episode in found.read())


def test_minari_without_pictures(tmp_path, episodes):
    layouts.minari_folder(tmp_path, episodes)
    with h5py.File(tmp_path / "data" / "main_data.hdf5", "r+") as file:
        for group in file.values():
            frames = len(group["observations"])
            del group["observations"]
            group["observations"] = np.zeros((frames, 17))
    refusal(tmp_path, "there are no pictures in it")


def test_mixed_action_sizes(tmp_path, episodes):
    layouts.hdf5_folder(tmp_path, episodes)
    with h5py.File(tmp_path / "episode_11.hdf5", "r+") as file:
        actions = file["actions"][:, :4]
        del file["actions"]
        file["actions"] = actions
    with pytest.raises(UserError, match=r"episode_11.hdf5, episode 0: actions of 4 numbers after 6; pack the tasks"):
        pack(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_mixed_tasks(tmp_path, episodes):
    layouts.hdf5_folder(tmp_path, episodes)
    with h5py.File(tmp_path / "episode_11.hdf5", "r+") as file:
        file.attrs["env"] = "walker_walk"
    refusal(tmp_path, "its files name several tasks")


def test_a_forged_npz_header_does_not_allocate(tmp_path, episodes):
    layouts.dreamer_folder(tmp_path, episodes)
    path = min(tmp_path.iterdir())
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, dict(descr="|u1", fortran_order=False, shape=(7, 10**6, 10**6, 3)))
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, header.getvalue() if name == "image.npy" else data)
    assert path.name in refusal(tmp_path, "more than the file holds")
