"""One rank of the counts of traffic: `RANK=r WORLD_SIZE=n python traffic_worker.py FOLDER` prints a JSON line a case.

A line has the case, the bytes that this rank sent in one step by kind of collective, and the buffers.
"""

import json
import sys

import torch
import torch.distributed as dist
from collectives import Collectives
from engine_worker import open_case, open_world
from toy import run_step

from aime_fast.balancing.layouts import reach

CASES = [
    {"stage": stage, "accumulation": accumulation, "known": known, "bf16": sent is not None, "sent": sent}
    for stage in range(4)
    for accumulation, known, sent in ((1, True, None), (3, True, None), (1, False, None), (1, True, "bf16"))
] + [{"stage": 0, "known": True, "bf16": True, "sent": "fp8"}]
CASES += [{"stage": 2, "known": True, "solver": "sum", "groups": "shared"}]
WORLDS = [{"stage": stage, "accumulation": 1, "windows": 4, "known": True} for stage in (0, 2, 3)]


def counted(engine, balancer):
    """The third step's bytes by kind, and what the formula is given."""
    for step in range(2):
        run_step(engine, balancer, step)
    with Collectives(engine.world_size) as collectives:
        run_step(engine, balancer, 2)
    layout = engine.layout
    # ZeRO-3 leaves nothing of a parameter itself.
    sizes = {index: size for buffer in layout.buffers for index, size in zip(buffer.indices, buffer.sizes, strict=True)}
    everything = [frozenset(range(3))] * len(layout.buffers)
    found = {
        "sent": collectives.sent,
        "sizes": [buffer.numel for buffer in layout.buffers],
        "reach": [sorted(tasks) for tasks in layout.buffer_reach or everything],
        "parameters": [sizes[index] for index in range(len(sizes))],
        "parameter_reach": [sorted(tasks) for tasks in layout.reach or [range(3)] * len(layout.parameters)],
    }
    if engine.module.__class__.__name__ == "World":
        found["frozen"] = sum(-(-p.ds_numel // engine.world_size) * engine.world_size for p in frozen(engine.module))
    engine.close()
    return found


def frozen(module):
    return [p for p in module.parameters() if not p.requires_grad and hasattr(p, "ds_numel")]


def main(folder):  # `open_case` writes its configurations there
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    with_small = reach.SMALLEST
    for case in CASES:
        reach.SMALLEST = 1  # the toy is small
        print(json.dumps({"case": case, **counted(*open_case(**case))}), flush=True)
    for case in WORLDS:
        reach.SMALLEST = with_small
        print(json.dumps({"case": case, "world": True, **counted(*open_world(**case))}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
