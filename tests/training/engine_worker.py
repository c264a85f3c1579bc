"""One rank of the engine tests: `RANK=r WORLD_SIZE=n python engine_worker.py FOLDER` runs every case and saves it.

With a third word, `eight`, it runs three steps of the world model under ZeRO-2 alone; with `solvers` every solver and
every kind of groups.

Every case is run in one process, because starting torch and DeepSpeed costs more than all of them together. Results
go to FOLDER/<world size>-<rank>.pt as {case: values}.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from collectives import Collectives
from safetensors.torch import save_file
from toy import Toy, balancer_of, batch, run_step, toy_config, toy_reach
from world import WINDOWS, World

from aime_fast.balancing.groups import GROUPS
from aime_fast.balancing.layouts import reach
from aime_fast.balancing.solvers.registry import SOLVERS
from aime_fast.tasks.aggregator import LossAggregator
from aime_fast.training.checkpoint.portable_state import StoredState, portable_state
from aime_fast.training.engines.open_engine import open_engine
from aime_fast.training.reach import tasks_reaching

# torch 2.13 gave it this name and warns of the older one.
all_gather = dist.all_gather_single if hasattr(dist, "all_gather_single") else dist.all_gather_into_tensor
STEPS = 20
WORLD_STEPS = 5
SOLVER_STEPS = 4
FAST = [("rotation", "module"), ("uncertainty", "shared")]
"""What runs in every test run; `solvers` runs the rest."""
CLIP = 0.5
LR = {"sgd": 0.05, "adamw": 0.005}


def open_case(
    stage,
    name="sgd",
    accumulation=1,
    solver="rotation",
    groups="all",
    seed=0,
    bf16=False,
    known=False,
    sent=None,
    **zero,
):
    """An engine on the toy and its balancer.

    known: it is told which tasks reach what. sent: "communication_data_type"; "fp8": bf16, and the update in
    8 bits. `zero` joins the ZeRO options.
    """
    config = toy_config(name=name, lr=LR[name], weight_decay=0.1, accumulation=accumulation, clip=CLIP)
    path = Path(sys.argv[1]) / f"zero-{os.environ['RANK']}.json"
    options = {"zero_optimization": {"stage": stage, **zero}, "bf16": {"enabled": bf16}}
    update = {"communication_data_type": "bf16", "update_data_type": "fp8"}
    path.write_text(json.dumps(options | (update if sent == "fp8" else {"communication_data_type": sent})))
    module = Toy(seed)
    engine = open_engine(module, replace(config, ds_config=str(path)), (lambda: toy_reach(module)) if known else None)
    return engine, balancer_of(engine, solver, groups)


def open_world(stage, accumulation, windows=WINDOWS, precision="auto", known=False):
    """The real model under SGD; known: the engine is told which tasks reach what."""
    optim = dict(name="sgd", lr=LR["sgd"], weight_decay=0.1, accumulation=accumulation, clip=CLIP, precision=precision)
    config = toy_config(**optim)
    config = replace(config, loader=replace(config.loader, batch_size=windows), ds_config=f"zero{stage}")
    world = World(windows=windows)
    engine = open_engine(world, config, (lambda: tasks_reaching(world.model, LossAggregator())) if known else None)
    return engine, balancer_of(engine)


def parameters(engine):
    with engine.whole():
        return torch.cat([p.detach().flatten() for p in engine.module.parameters() if p.requires_grad])


def train(engine, balancer, steps=range(STEPS)):
    """The flat parameters after each step, the balanced and clipped gradients, their norms before clipping, losses."""
    norms, gradients, trail, losses = [], [], [], []
    place = engine.layout.place

    def placed(update):
        gradients.append(flat_gradient(engine.layout, update))
        place(update)

    engine.layout.place = placed
    for step in steps:
        norms.append(run_step(engine, balancer, step).grad_norm)
        trail.append(parameters(engine))
        with engine.whole(), torch.no_grad():
            losses.append(torch.stack(engine.module.losses(engine.module(*engine.module.inputs(step)))))
    values = {"parameters": trail, "gradients": gradients, "norms": norms, "losses": losses}
    return {name: torch.stack(rows) for name, rows in values.items()}


def flat_gradient(layout, update):
    """What the optimiser is given, in the order of `parameters`: shards of all ranks joined, padding left out."""
    parts = [torch.empty(0)] * len(layout.parameters)
    for buffer, flat in zip(layout.buffers, update, strict=True):
        joined = torch.zeros(buffer.numel) if flat is None else flat
        if len(joined) < buffer.numel:
            joined = torch.empty(buffer.numel)
            all_gather(joined, flat)
        for position, index in enumerate(buffer.indices):
            parts[index] = torch.cat(buffer.pieces(joined, position))
    return torch.cat(parts)


def equality(steps=STEPS, **case):
    engine, balancer = open_case(**case)
    values = train(engine, balancer, range(steps))
    engine.close()
    return values


def resume(stage, name, known=False):
    """Whether five steps equal two steps, a new engine with the saved state, and three more."""
    engine, balancer = open_case(stage=stage, name=name, known=known)
    train(engine, balancer, range(2))
    weights = {key: value.clone() for key, value in engine.weights().items()}
    balance = balancer.state_dict()
    named = {key: value.clone() for key, value in portable_state(engine, balance["direction"]).items()}
    files = [Path(sys.argv[1]) / f"state-{rank}-of-{engine.world_size}" for rank in range(engine.world_size)]
    save_file(named, files[engine.rank])
    engine.barrier()
    whole = train(engine, balancer, range(2, 5))
    again, balancer = open_case(stage=stage, name=name, seed=5, known=known)
    again.load_weights(weights)
    balancer.load_state_dict(balance | {"direction": StoredState(files).restore(again)})
    values = train(again, balancer, range(2, 5))
    again.close()
    engine.close()  # it opened the process group, where there is one process
    return {"whole": whole["parameters"], "resumed": values["parameters"]}


def nonfinite(stage, solver, **case):
    """A NaN in one task on the last rank: parameters before, after, and after one more good step."""
    engine, balancer = open_case(stage=stage, name="adamw", solver=solver, **case)
    run_step(engine, balancer, 0)
    before = parameters(engine)
    observations, actions = (part.chunk(engine.world_size)[engine.rank] for part in batch(1))
    losses = engine.module.losses(engine(observations, actions, None))
    if engine.rank == engine.world_size - 1:
        losses[1] = losses[1] * torch.nan
    engine.backward(losses)
    report = engine.balance_and_step(balancer)
    after = parameters(engine)
    good = run_step(engine, balancer, 2)
    values = {"before": before, "after": after, "later": parameters(engine)}
    engine.close()
    return values | {"finite": bool(report.finite), "finite later": bool(good.finite)}


def traffic(stage):
    """Elements of the collectives of one step with two micro-batches, and of this rank's task gradients."""
    engine, balancer = open_case(stage=stage, accumulation=2)
    run_step(engine, balancer, 0)
    held, vectors = [], engine.layout.vectors

    def counted():
        found = vectors()
        held.append(sum(tensor.numel() for row in found for tensor in row if tensor is not None))
        return found

    engine.layout.vectors = counted
    with Collectives(engine.world_size) as collectives:
        run_step(engine, balancer, 1)
    engine.close()
    return {**collectives.elements, "rows": held[0]}


def main(folder, what="all"):
    torch.set_num_threads(1)
    reach.SMALLEST = 1  # the toy is small
    world_size = int(os.environ["WORLD_SIZE"])
    if world_size > 1:
        dist.init_process_group("gloo")
    if what == "eight":
        engine, balancer = open_world(2, accumulation=1, windows=8, known=True)
        results = train(engine, balancer, range(3))
        engine.close()
    elif what == "solvers":
        results = every_solver([(solver, groups) for solver in SOLVERS for groups in GROUPS])
    else:
        results = every_case(world_size) | every_solver(FAST)
    torch.save(results, Path(folder) / f"{world_size}-{os.environ['RANK']}.pt")
    if world_size > 1:
        dist.destroy_process_group()


def every_solver(cases):
    return {
        f"{solver}-{groups}-{stage}": equality(
            SOLVER_STEPS, stage=stage, solver=solver, groups=groups, accumulation=1 + stage % 2
        )
        for solver, groups in cases
        for stage in (0, 1, 2, 3)
    }


def every_case(world_size):
    results = {}
    for stage in (0, 1, 2, 3):
        for accumulation in (1, 2):
            results[f"sgd-{stage}-{accumulation}"] = equality(stage=stage, accumulation=accumulation)
        results[f"adamw-{stage}-1"] = equality(stage=stage, name="adamw")
        results[f"bf16-{stage}"] = equality(stage=stage, bf16=True)
        results[f"bf16-sent-{stage}"] = equality(stage=stage, bf16=True, sent="bf16", known=True)
        results[f"known-{stage}"] = equality(stage=stage, known=True, accumulation=2)
        results[f"known-shared-{stage}"] = equality(SOLVER_STEPS, stage=stage, known=True, groups="shared")
        results[f"resume-{stage}-known"] = resume(stage, "adamw", known=True)
        results[f"traffic-{stage}"] = traffic(stage)
        for solver in ("rotation", "sum"):
            results[f"nonfinite-{stage}-{solver}"] = nonfinite(stage, solver)
        for name in ("sgd", "adamw"):
            results[f"resume-{stage}-{name}"] = resume(stage, name)
    results["fp8-sent-0"] = equality(stage=0, bf16=True, sent="fp8", known=True)
    results["fp8-nonfinite"] = nonfinite(0, "rotation", bf16=True, sent="fp8")
    results["sgd-blocking"] = equality(stage=2, accumulation=2, overlap_comm=False, contiguous_gradients=False)
    for stage in (0, 2, 3):
        accumulation = 2 if stage >= 2 and world_size == 1 else 1
        engine, balancer = open_world(stage, accumulation, known=stage != 0)
        results[f"world-{stage}"] = train(engine, balancer, range(WORLD_STEPS))
        engine.close()
    engine, balancer = open_world(3, accumulation=1, precision="bf16")
    results["world-bf16"] = train(engine, balancer, range(WORLD_STEPS))
    engine.close()
    return results


if __name__ == "__main__":
    main(*sys.argv[1:])
