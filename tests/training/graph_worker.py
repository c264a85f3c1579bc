"""One rank of captured runs: `RANK=r WORLD_SIZE=n python graph_worker.py JOBS`, a JSON list of runs, one after another.

A job holds the options of a trainer, the choice of `cuda_graph`, and `fails`: ranks whose first capture fails. Without
a GPU the recorder is a stand-in. Prints a JSON line for each job: losses, a sum of weights, calls and the message.
"""

import json
import os
import sys

import pytest
import torch
import torch.distributed as dist
from fake_graph import captured_trainer

from aime_fast.errors import UserError
from aime_fast.training.trainer import DMCVBTrainer


def opened(job, rank):
    on_gpu = torch.cuda.is_available()
    if on_gpu or job["choice"] == "off":
        return DMCVBTrainer(**job["options"], cuda_graph=job["choice"]), None
    fails = {1} if rank in job["fails"] else ()
    return captured_trainer(pytest.MonkeyPatch(), job["options"], job["choice"], fails)


def run(job, rank):
    trainer, recorder = opened(job, rank)
    losses, error = [], None
    try:
        for step in range(trainer.schedules.total_steps):
            trainer.engine.set_lr(trainer.schedules.lr(step))
            result = trainer.step(trainer.step.fetch(step), trainer.schedules.beta(step))
            losses.append(result.values["total_elbo"].item())
    except UserError as mistake:
        error = str(mistake)
    weights = sum(x.double().abs().sum().item() for x in trainer.engine.weights().values())
    message = trainer.capture.take_message() if trainer.capture else None
    replays = recorder.calls.count("replay") if recorder else None
    trainer.close()
    return {"losses": losses, "weights": weights, "message": message, "replays": replays, "error": error}


def main(jobs):
    rank = int(os.environ["RANK"])
    if torch.cuda.is_available():
        torch.cuda.set_device(rank)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")  # the runs share it
    for job in json.loads(jobs):
        print(json.dumps(run(job, rank)), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
