"""A run that the machine's memory cannot hold is refused before any of it is taken."""

from dataclasses import replace

import pytest
import torch
from recording import tiny_options, write_recording

from aime_fast.config import preset_config
from aime_fast.errors import UserError
from aime_fast.training.run import room
from aime_fast.training.trainer import DMCVBTrainer


def with_sizes(name):
    config = preset_config(name)
    return replace(config, model=replace(config.model, action_dim=6, image_size=64))


@pytest.mark.parametrize("name", ["debug", "small", "paper"])
def test_the_estimate_is_generous_and_not_absurd(name):
    """Otherwise a run that does not fit would start, or every run would wait for the count."""
    config = with_sizes(name)
    parameters = room.parameter_count(config)
    counted, estimated = room.peak_bytes(config, 1, "cpu"), room.generous_bytes(config, parameters, 1)
    assert room.AT_LEAST * parameters < counted < estimated < 20 * counted


def test_room_decides(monkeypatch):
    config, counted = with_sizes("debug"), []
    monkeypatch.setattr(room, "peak_bytes", lambda *arguments: counted.append(arguments) or 3 * 10**9)
    monkeypatch.setattr(room, "free_bytes", lambda device: 10**12)
    room.refuse_too_large(config)
    assert counted == [], "a start does not wait for the count where there is plenty"
    monkeypatch.setattr(room, "generous_bytes", lambda *sizes: 10.0**12)
    room.refuse_too_large(config)
    assert len(counted) == 1
    monkeypatch.setattr(room, "free_bytes", lambda device: 2 * 10**9)
    with pytest.raises(UserError, match=r"4 windows of 8 frames needs 3\.0 GB, and 2\.0 GB are free; lower"):
        room.refuse_too_large(config)
    monkeypatch.setattr(room, "free_bytes", lambda device: 4 * 10**9)
    room.refuse_too_large(config)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"needs 6\.0 GB"):
        room.refuse_too_large(config)


@pytest.mark.parametrize("size", ["hidden_dim", "mlp_dim", "decoder_width"])
def test_a_model_that_can_never_fit_is_refused_without_counting(monkeypatch, size):
    """Of such sizes the count itself would take minutes."""
    config = with_sizes("small")
    monkeypatch.setattr(room, "peak_bytes", lambda *arguments: pytest.fail("counted"))
    monkeypatch.setattr(room, "free_bytes", lambda device: 16 * 10**9)
    huge = replace(config, model=replace(config.model, **{size: 60_000_000 if size == "mlp_dim" else 60_000}))
    with pytest.raises(UserError, match=r"G parameters needs at least .* and 16\.0 GB are free; lower the sizes"):
        room.refuse_too_large(huge)


def test_the_trainer_refuses_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "free_bytes", lambda device: 10**6)
    data = write_recording(tmp_path / "recording.pt")
    with pytest.raises(UserError, match="GB are free"):
        DMCVBTrainer(**tiny_options(data, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_step_that_was_counted_first_trains_as_any(tmp_path):
    """Counting runs a step on tensors without values; nothing of it may reach the run."""
    data = write_recording(tmp_path / "recording.pt")
    plain, counted = (DMCVBTrainer(**tiny_options(data, tmp_path / name)) for name in ("plain", "counted"))
    room.peak_bytes(counted.config, 1, "cpu")
    values = []
    for trainer in (plain, counted):
        trainer.fit()
        values.append({name: tensor.clone() for name, tensor in trainer.model.state_dict().items()})
        trainer.close()
    assert all(torch.equal(values[0][name], values[1][name]) for name in values[0])
