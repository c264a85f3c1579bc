"""Gradients that are taken over can be written without anything else changing."""

import torch

from aime_fast.balancing.vectors import owned


def test_owned_rows_share_no_memory():
    shared, larger = torch.arange(4.0), torch.arange(10.0)
    given = [shared, shared, torch.tensor(2.0).expand(3), None, torch.ones(2, dtype=torch.float64), larger[:4]]
    row = owned(given)
    for index in (0, 2, 5):
        row[index].fill_(-1)
    assert torch.equal(row[1], torch.arange(4.0))
    assert torch.equal(larger, torch.arange(10.0))
    assert row[2].tolist() == [-1, -1, -1]
    assert row[3] is None
    assert row[4] is given[4]


def test_only_what_must_be_is_copied():
    whole, transposed = torch.randn(3, 4), torch.randn(3, 4).t()
    row = owned([whole, transposed])
    assert row[0] is whole
    assert row[1].is_contiguous()
    assert torch.equal(row[1], transposed)
