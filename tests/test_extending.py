"""The examples of docs/extending.md: the page is executed from top to bottom, and what it adds works."""

import re
from pathlib import Path

import pytest
import torch

from aime_fast.model.priors.prior import Noise

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def page(tmp_path, monkeypatch):
    """The names that the page defines; the registries are as before afterwards."""
    from aime_fast.balancing.solvers.registry import SOLVERS
    from aime_fast.data.sources import OF_FILES
    from aime_fast.model.priors import PRIORS
    from aime_fast.tasks.registry import TASKS

    for registry in (TASKS, PRIORS, SOLVERS, OF_FILES):
        for name in registry:
            monkeypatch.setitem(registry, name, registry[name])
    before = {id(registry): set(registry) for registry in (TASKS, PRIORS, SOLVERS, OF_FILES)}
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "extending"}
    exec(compile("\n".join(BLOCKS), "extending.md", "exec"), names)
    yield names
    for registry in (TASKS, PRIORS, SOLVERS, OF_FILES):
        for name in set(registry) - before[id(registry)]:
            del registry[name]


def test_the_examples_run_and_hold(page, tmp_path):
    for run in ("change", "laplace", "equal"):
        rows = (tmp_path / "runs" / run / "metrics.jsonl").read_text()
        assert '"split": "train"' in rows
    assert "change_loss" in (tmp_path / "runs" / "change" / "metrics.jsonl").read_text()
    assert page["source"].lengths == [20, 20]
    episode = page["source"].episode(1)
    assert len(episode) == 20 and episode.action_dim == 2

    mean, log_scale = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    ours = page["LaplaceDistribution"](mean, log_scale)
    truth = torch.distributions.Laplace(mean, log_scale.exp())
    z = truth.sample((5,)).movedim(0, 2)
    torch.testing.assert_close(ours.log_prob(z), truth.log_prob(z.movedim(2, 0)).sum(-1).movedim(0, 2))
    noise = Noise(torch.Generator().manual_seed(0))
    draws = torch.stack([ours.sample(noise) for _ in range(4000)])
    torch.testing.assert_close(draws.mean(0), mean, atol=0.35, rtol=0.1)
