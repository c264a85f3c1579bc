"""The plain engine against `loss.backward()` and torch's own clipping and optimisers."""

import copy
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from toy import Toy, balancer_of, batch, run_step, toy_config
from world import World

from aime_fast.errors import UserError
from aime_fast.training.checkpoint.portable_state import StoredState, portable_state
from aime_fast.training.engines.engine import ADAM_EPSILON, micro_batch_size
from aime_fast.training.engines.open_engine import open_engine

torch.set_num_threads(1)


def reference_step(module, optimizer, clip, step):
    observations, actions = batch(step)
    optimizer.zero_grad()
    sum(module.losses(module(observations, actions))).backward()
    module.idle.grad = torch.zeros_like(module.idle)
    norm = torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
    optimizer.step()
    return norm


@pytest.mark.parametrize("accumulation", [1, 2, 3])
@pytest.mark.parametrize("clip", [5.0, 0.05])
def test_steps_equal_plain_torch(accumulation, clip):
    config = toy_config(name="adamw", lr=0.01, weight_decay=0.1, clip=clip, accumulation=accumulation)
    module, expected = Toy(), Toy()
    wide = [p for p in expected.parameters() if p.ndim >= 2]
    rest = [p for p in expected.parameters() if p.ndim < 2]
    groups = [{"params": wide, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    betas = config.optim.beta1, config.optim.beta2
    optimizer = torch.optim.AdamW(groups, lr=0.01, betas=betas, eps=ADAM_EPSILON, fused=False, foreach=False)
    engine = open_engine(module, config)
    for step in range(5):
        report = run_step(engine, balancer_of(engine, "sum"), step)
        norm = reference_step(expected, optimizer, clip, step)
        torch.testing.assert_close(report.grad_norm, norm, rtol=1e-5, atol=1e-6)
        assert bool(report.finite)
    for have, want in zip(module.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(have, want, rtol=1e-5, atol=1e-6)
    assert all(p.grad is None for p in module.parameters())


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_non_finite_gradient_skips_the_step_and_its_state(name):
    engine = open_engine(Toy(), toy_config(name=name, lr=0.1, weight_decay=0.1))
    run_step(engine, balancer_of(engine, "sum"), 0)
    before = copy.deepcopy(engine.optimizer.state_dict()), [p.detach().clone() for p in engine.module.parameters()]
    observations, actions = batch(1)
    observations[0, 0] = torch.nan
    engine.backward(engine.module.losses(engine(observations, actions, None)))
    report = engine.balance_and_step(balancer_of(engine, "sum"))
    assert not bool(report.finite)
    after = engine.optimizer.state_dict()
    for have, want in zip(engine.module.parameters(), before[1], strict=True):
        assert torch.equal(have, want)
    for index, state in before[0]["state"].items():
        for key, value in state.items():
            assert value is None or torch.equal(after["state"][index][key], value)
    assert bool(run_step(engine, balancer_of(engine, "sum"), 2).finite)
    assert all(torch.isfinite(p).all() for p in engine.module.parameters())


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_resume_is_bit_exact(name, tmp_path):
    config = toy_config(name=name, lr=0.02, accumulation=2)
    whole = open_engine(Toy(), config)
    for step in range(6):
        whole.set_lr(0.02 / (step + 1))
        run_step(whole, balancer_of(whole, "sum"), step)
        if step == 2:
            save_file({name: value.clone() for name, value in whole.weights().items()}, tmp_path / "weights")
            save_file({name: value.clone() for name, value in portable_state(whole, None).items()}, tmp_path / "state")
    resumed = open_engine(Toy(seed=9), config)
    resumed.load_weights(load_file(tmp_path / "weights"))
    StoredState([tmp_path / "state"]).restore(resumed)
    for step in range(3, 6):
        resumed.set_lr(0.02 / (step + 1))
        run_step(resumed, balancer_of(resumed, "sum"), step)
    for have, want in zip(resumed.module.parameters(), whole.module.parameters(), strict=True):
        assert torch.equal(have, want)


def test_set_lr_reaches_every_group_and_zero_stops():
    engine = open_engine(Toy(), toy_config(lr=0.1))
    before = [p.detach().clone() for p in engine.module.parameters()]
    engine.set_lr(0.0)
    run_step(engine, balancer_of(engine, "sum"), 0)
    assert all(torch.equal(have, want) for have, want in zip(engine.module.parameters(), before, strict=True))


def test_a_loss_without_gradient_is_a_task_of_zeros():
    engine = open_engine(Toy(), toy_config())
    observations, actions = batch(0)
    losses = engine.module.losses(engine(observations, actions, None))
    engine.backward([losses[0], torch.zeros(()), losses[1]])
    report = engine.balance_and_step(balancer_of(engine, "sum"))
    assert bool(report.finite) and float(report.grad_norm) > 0


class Offset(Toy):
    """Its first loss has a scalar parameter as a summand, whose gradient is what the backward pass starts from."""

    def __init__(self):
        super().__init__()
        self.offset = torch.nn.Parameter(torch.tensor(0.5))

    def losses(self, outputs):
        first, *rest = super().losses(outputs)
        return [first + self.offset, *rest]


def test_a_scalar_added_to_a_loss_does_not_change_later_gradients():
    engine = open_engine(Offset(), toy_config(accumulation=2))
    engine.set_lr(0.0)
    norms = [run_step(engine, balancer_of(engine), 0).balance.norms for _ in range(3)]
    assert torch.equal(norms[0], norms[1]) and torch.equal(norms[0], norms[2])


class Loud(Toy):
    """One of its losses is a million times as large."""

    def losses(self, outputs):
        first, second, third = super().losses(outputs)
        return [first, second * 1e6, third]


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # what DeepSpeed imports
@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("ds_config", [None, "zero2", "zero3"])
def test_scaling_a_loss_by_a_million_leaves_training_unchanged(ds_config, name):
    trails = []
    for kind in (Toy, Loud):
        engine = open_engine(kind(), replace(toy_config(name=name, lr=0.01), ds_config=ds_config))
        balancer = balancer_of(engine)
        for step in range(20):
            run_step(engine, balancer, step)
        trails.append(engine.weights())
        engine.close()
    for key, value in trails[0].items():
        torch.testing.assert_close(trails[1][key], value, rtol=1e-4, atol=1e-5)


class Waits(TorchDispatchMode):
    """Counts the calls that would make the host wait for a device: `.item()`, `float()`, `bool()` of a tensor."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # what DeepSpeed imports
@pytest.mark.parametrize("ds_config", [None, "zero0", "zero1", "zero2", "zero3"])
def test_no_call_of_a_step_waits_for_the_device(ds_config):
    engine = open_engine(Toy(), replace(toy_config(accumulation=2), ds_config=ds_config))
    with Waits() as waits:
        run_step(engine, balancer_of(engine, "sum"), 0)
        engine.set_lr(0.1)
        assert waits.count == 0
        assert bool(run_step(engine, balancer_of(engine, "sum"), 1).finite)
    assert waits.count == 1
    engine.close()


def test_balance_and_step_make_no_copy_of_a_gradient(peak_bytes):
    """Balance, clip and optimiser step on 3 rows of 8 M floats: no further row, once d and the moments are there."""

    class Wide(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = torch.nn.ParameterList(torch.randn(1 << 20) for _ in range(8))

    module = Wide()
    engine = open_engine(module, toy_config())
    balancer = balancer_of(engine)

    def backward():
        engine.backward([sum((p - shift).square().sum() for p in module.parts) for shift in (0.0, 1.0, 2.0)])

    backward()
    engine.balance_and_step(balancer)
    backward()
    assert peak_bytes(lambda: engine.balance_and_step(balancer)) < 22_000_000 < 4 * (1 << 23)


def test_calls_out_of_order_are_errors():
    engine = open_engine(Toy(), toy_config(accumulation=2))
    with pytest.raises(RuntimeError, match="0 of 2"):
        engine.balance_and_step(balancer_of(engine, "sum"))


@pytest.mark.parametrize(("world_size", "accumulation", "size"), [(1, 1, 12), (2, 3, 2), (3, 4, 1)])
def test_micro_batch_divides_the_global_batch(world_size, accumulation, size):
    assert micro_batch_size(toy_config(accumulation=accumulation), world_size) == size


def test_a_batch_that_does_not_divide_is_a_users_mistake():
    with pytest.raises(UserError, match=r"loader\.batch_size=12 .* multiple of 10"):
        micro_batch_size(toy_config(accumulation=2), 5)


def test_many_processes_need_deepspeed(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes without --ds_config would train apart; add --ds_config zero2"):
        open_engine(Toy(), toy_config())


@pytest.mark.parametrize("minutes", ["0", "0.5", "soon"])
def test_a_bad_timeout_is_a_users_mistake(monkeypatch, minutes):
    monkeypatch.setenv("DEEPSPEED_TIMEOUT", minutes)
    with pytest.raises(UserError, match=f"DEEPSPEED_TIMEOUT={minutes} .* whole minutes"):
        open_engine(Toy(), replace(toy_config(), ds_config="zero2"))


def test_a_task_leaves_the_modules_alone_that_it_spares():
    """Its gradient stops there; the others, and its own for other modules, are what autograd gives."""
    world = World()
    engine = open_engine(world, toy_config())
    losses = world.losses(engine(*world.inputs(0)))
    parameters = [parameter for parameter in world.parameters() if parameter.requires_grad]
    whole = [torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) for loss in losses]
    engine.backward(losses, spares=world.spares)
    spared = {i for i, name in enumerate(engine.parameter_names) if name.startswith("model.perceiver.")}
    assert any(whole[2][i] is not None for i in spared)
    for task, vector in enumerate(engine.layout.vectors()):
        for cut, flat in zip(engine.layout.cuts(), vector, strict=True):
            for piece in cut.pieces:
                wanted = None if task == 2 and piece.index in spared else whole[task][piece.index]
                found = torch.zeros(piece.numel) if flat is None else flat[piece.at : piece.at + piece.numel]
                assert torch.equal(found, torch.zeros(piece.numel) if wanted is None else wanted.flatten())
