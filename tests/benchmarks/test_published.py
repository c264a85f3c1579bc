"""How measured steps become figures for the published cards, and that every target has a source."""

import tomllib
from dataclasses import fields

import published
import pytest
import targets
from pydantic import ValidationError
from targets import EpochTarget, Limit, Published, read_targets

from aime_fast.planning.cards import card
from aime_fast.planning.plan import Memory, Plan

ROW = Published(
    card="rtx3090", gpus=8, batch_size=8, sequence_length=16, epoch_minutes=2, memory_gb=18, source="made for a test"
)
EPOCH = EpochTarget(episodes=2000, frames=500, stride=16, source="made for a test")


def test_every_target_has_a_source():
    raw = tomllib.loads(targets.PATH.read_text())
    entries = [raw["epoch"], raw["ours"], *raw["published"], *raw["limit"]]
    assert len(entries) > 10 and all(len(entry["source"]) > 10 for entry in entries)
    assert {(row.batch_size, row.sequence_length) for row in read_targets().published} == {(8, 16), (16, 16), (8, 32)}


def test_a_target_without_a_source_is_refused(tmp_path):
    text = targets.PATH.read_text()
    path = tmp_path / "targets.toml"
    path.write_text(text.replace('source = "README: less than a minute"', ""))
    with pytest.raises(ValidationError, match="source"):
        read_targets(path)


def test_a_limit_needs_one_bound():
    with pytest.raises(ValidationError, match="either most or least"):
        Limit(what="a", form="b", of="p50", source="made for a test")


def made_plan(kind, gpus, batch_size, step_seconds, allocated, epoch):
    kinds = {kind.name: 0.0 for kind in fields(Memory)}
    memory = Memory(**kinds | {"weights": allocated, "context": 1e9})
    steps = epoch.windows(16) // batch_size
    return Plan(
        card=kind, gpus=gpus, batch_size=batch_size, sequence_length=16, link="made", stage=0, memory=memory, phases=(),
        step_seconds=step_seconds, steps_per_epoch=steps, epoch_seconds=steps * step_seconds, largest_batch=1,
        recommended_stage=0, reason="made", disk=0, assumptions=("made",),
    )  # fmt: skip


@pytest.fixture
def planner(monkeypatch):
    """30 ms and 2 GB on RTX 3090, 10 ms and 3 GB elsewhere."""
    asked = []

    def plan(config, kind, gpus, *, epoch, ds_config):
        asked.append((kind.name, gpus, config.loader.batch_size, config.loader.sequence_length, ds_config))
        of_3090 = kind.name == "rtx3090"
        return made_plan(kind, gpus, config.loader.batch_size, *((0.03, 2e9) if of_3090 else (0.01, 3e9)), epoch)

    monkeypatch.setattr(published, "plan", plan)
    return asked


def test_a_prediction_is_the_planners(planner):
    found = published.predicted(ROW, EPOCH)
    assert planner == [("rtx3090", 8, 64, 16, "zero0-fp8")]
    assert found.kind == "PREDICTED" and found.memory_bytes == 2e9
    assert found.epoch_seconds == [2000 * 31 // 64 * 0.03]
    assert any("2,000 episodes of 500 frames" in line for line in found.assumptions) and "made" in found.assumptions


@pytest.mark.parametrize("count", [1, 2])
def test_what_is_measured_is_scaled_by_the_rules(planner, monkeypatch, count):
    ran = []

    def run_json(*words, processes, threads):
        ran.append((words, processes))
        return {"samples": {"seconds": [0.02, 0.04]}, "memory_bytes": 2.5e9}

    monkeypatch.setattr(published, "run_json", run_json)
    monkeypatch.setattr(published.torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(published.torch.cuda, "device_count", lambda: count)
    found = published.measured(ROW, EPOCH)
    assert planner[1] == ("h200", count, 8 * count, 16, "zero0-fp8" if count > 1 else None)
    (words, processes), steps = ran[0], 2000 * 31 // 64
    assert words[words.index("--batch-size") + 1] == 8 * count and processes == (count if count > 1 else 0)
    assert found.epoch_seconds == pytest.approx([0.02 * 3 * steps, 0.04 * 3 * steps])
    assert found.memory_bytes == pytest.approx(1.5e9)
    assert any("time x 3.000" in line for line in found.assumptions)


@pytest.mark.parametrize(
    "name, short",
    [
        ("NVIDIA GeForce RTX 3090", "rtx3090"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA L40S", "l40s"),
    ],
)
def test_a_card_is_found_by_what_cuda_calls_it(name, short):
    assert published.card_here(name) == card(short)


def test_an_unknown_card_is_not_scaled():
    with pytest.raises(LookupError, match="knows no card 'Tesla K80'"):
        published.card_here("Tesla K80")
