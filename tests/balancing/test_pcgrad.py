"""PCGrad against TorchJD's, given the same orders."""

import pytest
import torch
from torchjd.aggregation import PCGradWeighting

from aime_fast.balancing.solvers.pcgrad import PCGrad, orders
from aime_fast.balancing.solvers.solver import Problem
from aime_fast.config import BalancingConfig


@pytest.mark.parametrize("n", [2, 3, 5, 8])
@pytest.mark.parametrize("size", [2, 20])
def test_equals_torchjd_in_every_order(n, size, monkeypatch):
    for step in range(10):
        vectors = torch.randn(n, size, dtype=torch.float64)
        gram, counter = vectors @ vectors.t(), torch.tensor(step)
        given = iter(orders(counter, n))
        monkeypatch.setattr(torch, "randperm", lambda n, given=given: next(given))
        solution = PCGrad(BalancingConfig()).solve(Problem.of(gram[None], n), {"counter": counter}, None)
        torch.testing.assert_close(solution.weights[0], PCGradWeighting()(gram), rtol=1e-9, atol=1e-9)


def test_orders_are_permutations_that_change():
    found = torch.stack([orders(torch.tensor(step), 3) for step in range(200)]).view(-1, 3)
    assert len({tuple(order) for order in found.tolist()}) == 6
    assert torch.equal(found.sort(1).values, torch.arange(3).expand(600, 3))
