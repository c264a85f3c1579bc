"""The posterior: a slot's piece of z depends on the cells that the slot owns, the shared piece on all."""

from dataclasses import replace

import pytest
import torch

from aime_fast.config import preset_config
from aime_fast.model.parts.attention_schema import Attention
from aime_fast.model.parts.posterior import Posterior
from aime_fast.model.parts.slots import Pieces

CONFIG = replace(preset_config("debug").model, num_slots=3, latent_dim=14)
BATCH, FRAMES, GRID, SLOTS = 2, 2, CONFIG.grid, CONFIG.num_slots
PIECES = Pieces.of(CONFIG)


def attention(owner):
    """A schema in which cell p belongs to slot owner[p] alone; slots and maps are random."""
    maps = torch.rand(BATCH, FRAMES, SLOTS, GRID**2).softmax(-1)
    owned = torch.nn.functional.one_hot(owner.flatten(), SLOTS).T.float()
    slots = torch.randn(BATCH, FRAMES, SLOTS, CONFIG.slot_dim)
    return Attention(slots, maps, torch.zeros(BATCH, FRAMES, SLOTS, 2), owned.expand(BATCH, FRAMES, -1, -1))


def pieces(z):
    shared, own = PIECES.split(z, SLOTS)
    return [shared, *own.unbind(-2)]


@pytest.fixture
def inputs():
    """A posterior, features, a schema with a slot for the left half, one for the right and one for nothing, c."""
    owner = torch.zeros(GRID, GRID, dtype=torch.int64)
    owner[:, GRID // 2 :] = 1
    features = torch.randn(BATCH * FRAMES, 2 * CONFIG.encoder_width, GRID, GRID)
    return Posterior(CONFIG), features, attention(owner), torch.randn(BATCH, FRAMES, CONFIG.context_dim)


def test_a_piece_does_not_change_with_cells_that_its_slot_does_not_own(inputs):
    posterior, features, schema, context = inputs
    changed = features.clone()
    changed[..., GRID // 2 + 1 :] += 1  # the convolution reads one cell beyond a block
    for before, after in zip(posterior(features, schema, context), posterior(changed, schema, context), strict=True):
        shared, left, right, idle = (torch.equal(*pair) for pair in zip(pieces(before), pieces(after), strict=True))
        assert (shared, left, right, idle) == (False, True, False, True)


def test_a_slot_and_the_cells_it_owns_move_its_own_piece_alone(inputs):
    posterior, features, schema, context = inputs
    slots, owned = schema.slots.clone(), schema.assignments.clone()
    slots[:, :, 2] += 1
    owned[:, :, 2, : GRID // 2] = 0.5
    for other in (
        Attention(slots, schema.maps, schema.centres, schema.assignments),
        Attention(schema.slots, schema.maps, schema.centres, owned),
    ):
        for before, after in zip(
            posterior(features, schema, context), posterior(features, other, context), strict=True
        ):
            same = [torch.equal(*pair) for pair in zip(pieces(before), pieces(after), strict=True)]
            assert same == [True, True, True, False]


def test_every_piece_reads_the_context_of_its_own_frame(inputs):
    posterior, features, schema, context = inputs
    changed = context.clone()
    changed[:, 1] += 1
    before, after = posterior(features, schema, context), posterior(features, schema, changed)
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one[:, 0], other[:, 0])
        assert not any(torch.equal(*pair) for pair in zip(pieces(one[:, 1]), pieces(other[:, 1]), strict=True))


def test_the_posterior_starts_narrower_than_a_standard_normal(inputs):
    posterior, features, schema, context = inputs
    mean, log_var = posterior(features, schema, context)
    assert mean.shape == log_var.shape == (BATCH, FRAMES, CONFIG.latent_dim)
    assert log_var.max() < -1 and log_var.min() > -6
