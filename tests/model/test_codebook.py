"""The codebook's moving average, and which codes are moved onto which encodings."""

import torch

from aime_fast.model.parts.tokenizer import REVIVED_SHARE, Codebook

CODES, DIM, DECAY = 128, 4, 0.9


def started(spread=1.0):
    """A codebook after its first update, and the encodings it was started from."""
    codebook = Codebook(CODES, DIM, DECAY)
    encodings = spread * torch.randn(CODES, DIM)
    codebook.update(torch.zeros(CODES, dtype=torch.int64), encodings, torch.arange(CODES), 0)
    return codebook, encodings


def test_the_first_update_puts_every_code_on_an_encoding():
    codebook, encodings = started()
    assert torch.equal(codebook.codes.unique(dim=0), encodings.unique(dim=0))


def test_nothing_is_quantised_before_the_first_update():
    codebook, encodings = Codebook(CODES, DIM, DECAY), torch.randn(2, 3, DIM)
    assert torch.equal(codebook(encodings)[1], encodings)


def test_of_codes_on_one_encoding_the_first_is_chosen_whatever_the_rounding():
    codebook, _ = started()
    codebook.codes[64:] = codebook.codes[:64] * (1 + 1e-6 * torch.randn(64, 1))
    encodings = codebook.codes[:64] * (1 + 1e-6 * torch.randn(64, 1))
    assert torch.equal(codebook(encodings[None])[0][0], torch.arange(64))


def test_a_code_moves_to_the_mean_of_what_it_wins():
    codebook, _ = started()
    won = torch.randn(50, DIM) + 3
    for _ in range(200):
        codebook.update(torch.full((50,), 7), won, torch.zeros(CODES, dtype=torch.int64), 0)
    torch.testing.assert_close(codebook.codes[7], won.mean(0), rtol=1e-4, atol=1e-4)


def test_few_dead_codes_move_at_a_step_and_onto_what_is_served_worst():
    codebook, encodings = started(spread=0.01)
    codebook.counts.fill_(1e-6)
    codebook.sums.copy_(codebook.codes * 1e-6)
    before = codebook.codes.clone()
    offered = torch.cat([encodings[:-2], torch.full((1, DIM), 5.0), torch.full((1, DIM), -5.0)])
    codebook.update(torch.zeros(CODES, dtype=torch.int64), offered, torch.arange(CODES), 0)
    moved = (codebook.codes - before).norm(dim=1) > 1
    assert moved.sum() == CODES // REVIVED_SHARE == 2
    assert {round(code.mean().item()) for code in codebook.codes[moved]} == {5, -5}


def test_the_nearest_code_is_chosen_and_what_is_not_a_number_gets_some_code():
    codebook, _ = started()
    encodings = torch.randn(3, 50, DIM)
    ids, codes = codebook(encodings)
    distances = torch.cdist(encodings.double(), codebook.codes.double())
    assert torch.equal(ids, distances.argmin(-1)) and torch.equal(codes, codebook.codes[ids])
    encodings[1, 7] = float("nan")
    spoilt, _ = codebook(encodings)
    assert 0 <= spoilt[1, 7] < CODES and (spoilt != ids).sum() <= 1
