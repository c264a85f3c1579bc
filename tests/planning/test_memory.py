"""Predicted memory against what torch allocates."""

from dataclasses import replace

import pytest
import torch
from measuring import peak_bytes as allocated_bytes

from aime_fast.config import preset_config
from aime_fast.errors import UserError
from aime_fast.planning.cards import card
from aime_fast.planning.memory import fitting_windows, largest_windows, memory_of, peak_bytes
from aime_fast.planning.rehearsal import rehearse
from aime_fast.training.run.device import out_of_memory
from aime_fast.training.trainer import DMCVBTrainer


def sized(preset, batch, frames, **changes):
    config = preset_config(preset)
    return replace(config, loader=replace(config.loader, batch_size=batch, sequence_length=frames), **changes)


SHAPES = {"debug": [(4, 8), (8, 16), (3, 5)], "small": [(8, 16), (4, 8), (2, 24)], "paper": [(2, 16), (1, 8), (2, 4)]}


@pytest.mark.parametrize(
    ("preset", "batch", "frames"),
    [
        pytest.param(preset, *shape, marks=[] if preset == "debug" else pytest.mark.slow)
        for preset, shapes in SHAPES.items()
        for shape in shapes
    ],
)
def test_the_peak_of_a_step_is_within_a_tenth(preset, batch, frames, tmp_path):
    config = sized(preset, batch, frames, compile="off", steps=4, out=str(tmp_path / "run"))
    trainer = DMCVBTrainer(config)
    try:
        trainer.step(trainer.step.fetch(0), 0.5)  # makes the states that later steps find
        inputs, beta = trainer.step.fetch(1), torch.tensor(0.5)
        measured = allocated_bytes(lambda: trainer.step(inputs, beta))
        seen = rehearse(trainer.config, batch)
    finally:
        trainer.close()
    assert seen.peak - seen.before == pytest.approx(measured, rel=0.1)


def test_more_ranks_need_less_and_stages_less_still():
    config = sized("debug", 8, 8)
    ranks = [peak_bytes(config, ranks) for ranks in (1, 2, 8)]
    assert ranks == sorted(ranks, reverse=True)
    seen = rehearse(config, 1, "cuda")
    by_stage = [memory_of(seen, card("h100"), 8, stage, True) for stage in (0, 1, 2, 3)]
    assert by_stage[1].optimiser < by_stage[0].optimiser
    assert by_stage[0].total >= by_stage[1].total >= by_stage[2].total


def test_the_batch_must_divide():
    with pytest.raises(UserError, match="does not divide by 3 processes"):
        peak_bytes(sized("debug", 4, 8), 3)


def test_the_largest_batch_is_the_last_that_fits():
    """Against a rehearsal of that batch and of the next one, which nothing was told of."""
    config = sized("debug", 4, 8)
    seen, twice = rehearse(config, 4, "cuda"), rehearse(config, 8, "cuda")
    small = replace(card("rtx3090"), memory=1.2e9)
    most = largest_windows(seen, twice, (4, 8), small, 1, 0, True)
    assert most > 8
    for number, fits in ((most, True), (most + 1, False)):
        need = memory_of(rehearse(config, number, "cuda"), small, 1, 0, True).total
        assert (need <= small.memory) is fits
    assert largest_windows(seen, twice, (4, 8), replace(small, memory=0.8e9), 1, 0, True) == 0


def test_a_micro_batch_that_fits_after_memory_ended():
    config = sized("debug", 8, 8)
    whole = peak_bytes(config, 1, "cuda")
    assert fitting_windows(config, 8, 1, 4 * whole) == 4
    assert 0 < fitting_windows(config, 8, 1, 0.5 * whole) < 4
    assert fitting_windows(config, 8, 1, 0.05 * whole) == 0


def test_the_message_says_what_fits_the_room():
    config = sized("debug", 8, 8)
    whole = peak_bytes(config, 1, "cuda")
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    said = str(out_of_memory(error, "step", config, 8, None, 4 * whole))
    assert "2.00 GiB more needed" in said
    assert f"a micro-batch of 4 instead of 8 windows fits {4 * whole / 1e9:.1f} GB by the plan" in said
    assert "--optim.accumulation 2 keeps the batch of 8" in said
    said = str(out_of_memory(error, "step", config, 8, None, whole // 20))
    assert "not even one window fits" in said
