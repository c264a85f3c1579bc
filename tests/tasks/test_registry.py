"""The registry of tasks: names, mistakes, and terms that belong to one task each."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import save_file

from aime_fast.config import LossConfig, preset_config
from aime_fast.data.batch import Batch
from aime_fast.errors import UserError
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder
from aime_fast.tasks.aggregator import LossAggregator
from aime_fast.tasks.registry import TASKS, check_data, make_tasks

CONFIG = replace(preset_config("debug").model, action_dim=2)


@pytest.fixture(scope="module")
def made():
    """Every task's losses by task name, the tasks, and the model."""
    torch.manual_seed(0)
    tasks = make_tasks(list(TASKS))
    model = DPGMMVariationalRecurrentAutoencoder.from_config(CONFIG)
    model.add_heads(tasks)
    batch = Batch(
        torch.randint(0, 256, (2, 4, 64, 64, 3), dtype=torch.uint8),
        torch.randn(2, 4, 2),
        torch.rand(2, 4),
        torch.zeros(2, 4, dtype=torch.bool),
        torch.zeros(2, 4, dtype=torch.bool),
    )
    outputs = model(batch.frames(), batch.actions)
    return {task.name: task.losses(outputs, 0.5, LossConfig(), batch) for task in tasks}, tasks, model


def test_a_task_goes_by_its_name_and_shows_what_it_computes(made):
    losses, tasks, _ = made
    assert [task.name for task in tasks] == list(TASKS)
    for task in tasks:
        assert task.total in losses[task.name]
        assert set(task.shown().values()) <= losses[task.name].keys()
        assert all(value.ndim == 0 for value in losses[task.name].values())


def test_no_term_belongs_to_two_tasks(made):
    names = [name for losses in made[0].values() for name in losses]
    assert len(names) == len(set(names))


def test_every_task_reaches_parameters_and_only_its_own_head(made):
    losses, tasks, model = made
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    for task in tasks:
        gradients = torch.autograd.grad(
            losses[task.name][task.total], [model.get_parameter(n) for n in names], retain_graph=True, allow_unused=True
        )
        reached = {name for name, gradient in zip(names, gradients, strict=True) if gradient is not None}
        assert any(not name.startswith("heads.") for name in reached)
        assert all(name.startswith(f"heads.{task.name}.") for name in reached if name.startswith("heads."))


def test_heads_come_after_all_other_parts():
    """Today's parameters have today's values, whatever tasks a run trains."""
    models = []
    for names in (["elbo"], list(TASKS)):
        torch.manual_seed(0)
        models.append(DPGMMVariationalRecurrentAutoencoder.from_config(CONFIG))
        models[-1].add_heads(make_tasks(names))
    plain, with_heads = (model.state_dict() for model in models)
    assert all(torch.equal(with_heads[name], value) for name, value in plain.items())
    assert all(name.startswith("heads.") for name in with_heads.keys() - plain.keys())


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([""], "no task.*choose --tasks from elbo, perceiver"),
        (["elbo", "percever"], "unknown --tasks name 'percever'; did you mean 'perceiver'.*elbo, perceiver"),
        (["dreams"], "unknown --tasks name 'dreams'; choose from elbo"),
        (["elbo", "elbo"], "'elbo' is named twice"),
    ],
)
def test_mistakes_are_one_line(names, words):
    with pytest.raises(UserError, match=words):
        make_tasks(names)


def test_rewards_that_a_recording_lacks():
    tasks = make_tasks()
    check_data(tasks, False, "runs/data")
    tasks[0].needs_rewards = True
    with pytest.raises(UserError, match="runs/data has no rewards, which task 'elbo' needs"):
        check_data(tasks, False, "runs/data")
    check_data(tasks, True, "runs/data")


def test_an_aggregator_has_three_tasks_by_default():
    assert [task.name for task in LossAggregator().tasks] == ["elbo", "perceiver", "predictive"]
    assert [task.name for task in LossAggregator(tasks=make_tasks(["perceiver"])).tasks] == ["perceiver"]


def test_a_task_with_targets_wants_the_batch(made):
    task = make_tasks(["perceiver"])[0]
    task.needs_rewards = True
    with pytest.raises(ValueError, match=r"'perceiver' has targets.*batch=batch"):
        task.losses(None, 1.0, LossConfig(), None)


def test_exported_heads_are_read_for_the_tasks_that_want_them(made, tmp_path):
    _, tasks, model = made
    save_file({k: x.contiguous() for k, x in model.state_dict().items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model": asdict(model.config)}))
    read = DPGMMVariationalRecurrentAutoencoder.from_pretrained
    assert not read(tmp_path).heads
    whole = read(tmp_path, tasks).state_dict()
    assert whole.keys() == model.state_dict().keys()
    assert all(torch.equal(whole[name], value) for name, value in model.state_dict().items())
