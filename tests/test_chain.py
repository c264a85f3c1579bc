"""From a simulator to a trained model by the commands of the documentation: collect, pack, inspect, train."""

import json

import pytest

from aime_fast.commands.main import main
from aime_fast.data.backends import STREAMS
from aime_fast.doctor import choose_graphics

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    if choose_graphics()[0] is None:
        pytest.skip("nothing renders here; `aime-fast doctor` says what to install")
    pytest.importorskip("dm_control")
    folder = tmp_path_factory.mktemp("chain")
    recorded, packed = folder / "recorded", folder / "packed"
    collect = ["collect", "--env", "cartpole_swingup", "--episodes", 4, "--length", 64, "--out", recorded]
    for arguments in (collect, ["pack", recorded, "--codec", "jpg", "--out", packed]):
        assert main([str(argument) for argument in arguments]) == 0
    return packed


def test_inspect_finds_it_whole(shards, capsys):
    assert main(["inspect", "--deep", str(shards)]) == 0
    printed = capsys.readouterr().out
    for words in ("cartpole_swingup", "3 episodes, 192 frames", "1 episode, 64 frames", "256 frames read, all whole"):
        assert words in printed


@pytest.mark.parametrize("backend", ["memory", "dali", "dali-stream", "webdataset", "resident"])
def test_every_back_end_trains_from_it(shards, tmp_path, backend):
    """Exact back-ends see the same windows, so they report the same losses; streams report finite ones."""
    losses = {}
    for kind in {backend, "memory"}:
        out = tmp_path / kind
        flags = ["--preset", "debug", "--steps", 3, "--backend", kind, "--logging.log_every", 1]
        assert main([str(word) for word in ["train", *flags, "--data", shards, "--out", out]]) == 0
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses[kind] = [row["total_elbo"] for row in rows if row["split"] == "train"]
        assert [row["split"] for row in rows] == ["train"] * 3 + ["val"]
    assert len(losses[backend]) == 3 and None not in losses[backend]
    assert (losses[backend] == losses["memory"]) == (backend not in STREAMS)
