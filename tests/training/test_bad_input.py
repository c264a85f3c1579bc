"""A mistake, through the entry point: one line saying what, where and what to do, exit code 2, nothing written over."""

import json

import pytest
import torch
from recording import write_recording

from aime_fast import train

SIZES = ["--loader.batch-size", "2", "--loader.sequence-length", "4", "--loader.windows-per-epoch", "6"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a recording, a finished run of two steps, and files that are broken in one way each."""
    folder = tmp_path_factory.mktemp("place")
    data = write_recording(folder / "recording.pt")
    base = ["--preset", "debug", "--data", data, *SIZES, "--steps", "2", "--logging.tracker", "none"]
    assert train.main([*base, "--out", str(folder / "run")]) == 0
    old = folder / "old" / "checkpoints" / "step-00000001"
    old.mkdir(parents=True)
    (old / "manifest.json").write_text(json.dumps({"format": 1, "world_size": 1, "files": {"state.json": {}}}))
    for name, content in {
        "torn.json": '{"zero_optimization": {"stage": 2',
        "list.json": "[2]",
        "latin.json": b'{"caf\xe9": 1}',
        "stage9.json": {"zero_optimization": {"stage": 9}},
        "offload.json": {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}},
        "fp16.json": {"fp16": {"enabled": True}},
        "optimizer.json": {"optimizer": {"type": "Adam"}},
        "unknown.json": {"sparse_attention": {"mode": "fixed"}},
        "batch.json": {"train_batch_size": 64},
        "text.h5": "not HDF5",
        "empty.pt": b"",
    }.items():
        content = json.dumps(content) if isinstance(content, dict) else content
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (folder / "nothing").mkdir()
    return folder


def contents(folder):
    """Every file and folder with what it holds."""
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # what DeepSpeed imports
@pytest.mark.parametrize(
    ("arguments", "what", "remedy"),
    [
        (["--preset", "huge"], "preset must be one of", "must be one of debug, small, paper, not 'huge'"),
        (["--stepz", "3"], "unknown option --stepz", "did you mean --steps?"),
        (["--config", "none.yaml"], "none.yaml: No such file", "config"),
        (
            ["--ds_config", "none.json"],
            "none.json: no such file",
            "shipped names: zero0, zero0-bf16, zero0-fp8, zero1, zero2",
        ),
        (["--ds_config", "nothing"], "nothing: no such file", "shipped names"),
        (["--ds_config", "torn.json"], "torn.json: not valid JSON at line 1, column 34", "correct it"),
        (["--ds_config", "list.json"], "list.json: holds a list, not an object", "see ds_configs/README.md"),
        (["--ds_config", "latin.json"], "latin.json: cannot be read", "give a readable JSON file"),
        (["--ds_config", "stage9.json"], "stage9.json: zero_optimization.stage=9: unknown", "use 0, 1, 2 or 3"),
        (["--ds_config", "offload.json"], "zero_optimization.offload_optimizer", "use a higher stage"),
        (["--ds_config", "fp16.json"], "fp16.json: fp16", '"bf16": {"enabled": true} instead'),
        (["--ds_config", "optimizer.json"], "optimizer.json: optimizer", "use --optim.name"),
        (["--ds_config", "unknown.json"], "unknown.json: sparse_attention: not an option", "remove it"),
        (["--ds_config", "batch.json"], "train_batch_size=64", "set --loader.batch_size"),
        (["--data", "/nowhere"], "/nowhere: no such file or folder", "check the path"),
        (["--data", "nothing"], "nothing: not a recording", "known are"),
        (["--data", "text.h5"], "text.h5", "HDF5"),
        (["--data", "empty.pt"], "empty.pt", ""),
        (["--model.action-dim", "9"], "action_dim is 9, but", "set it to 2"),
        (["--loader.batch-size", "64"], "recording.pt has 36 windows of 4 frames", "lower --loader.batch-size to 36"),
        (["--model.image-size", "50"], "--model.image_size must be 0 or a multiple of 16, not '50'", "--help"),
        (["--model.image-size", "96"], "model.image_size is 96, but recording.pt has 64", "set it to 64"),
        (["--loader.sequence-length", "13"], "the longest of 4 episodes has 12", "lower it to 12 or less"),
        (
            ["--resume", "run", "--out", "other", "--model.latent-dim", "12"],
            "other settings: model.latent_dim 16 -> 12",
            "use the old ones",
        ),
        (["--resume", "run", "--out", "other", "--optim.lr", "1"], "optim.lr 0.003 -> 1.0, steps 2 -> 3", "--override"),
        (
            ["--resume", "old", "--out", "other"],
            "was written by aime-fast 0.1.0 (checkpoint format 1,",
            "use aime-fast 0.1.0",
        ),
        (["--resume", "nothing", "--out", "other"], "nothing: no checkpoint there", "give a run's folder"),
        (["--resume", "auto"], "--resume auto", "give the run's folder with --out"),
        (["--out", "run"], "run already holds a run", "--resume auto, or give another --out"),
        (["--out", "text.h5"], "text.h5 is a file", "give a folder"),
        (["--out", "text.h5/run"], "cannot write to text.h5/run", "give another folder with --out"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_exit_code_2(place, capsys, monkeypatch, arguments, what, remedy):
    monkeypatch.chdir(place)
    before = contents(place)
    given = ["--preset", "debug", "--data", "recording.pt", *SIZES, "--steps", "3", *arguments]
    assert train.main(given) == 2
    assert not torch.distributed.is_initialized(), "what was opened is closed"
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert what in err
    assert remedy in err
    assert contents(place) == before
