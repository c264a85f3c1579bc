"""Ranks of the tests that resume at another number of processes: `RANK=r WORLD_SIZE=n python resume_worker.py JOBS`.

JOBS is a json list of options of `DMCVBTrainer` with `until`; each is trained in turn, in one process a rank, because
starting costs more than training.
"""

import json
import os
import sys

import torch
import torch.distributed as dist

from aime_fast.training.trainer import DMCVBTrainer


def main(jobs):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for options in jobs:
        until = options.pop("until")
        trainer = DMCVBTrainer(**options)
        try:
            trainer.fit(until)
        finally:
            trainer.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("MPLBACKEND", "Agg")
    main(json.loads(sys.argv[1]))
