"""A rank of a run in which rank 1 fails at step 3: `RANK=r WORLD_SIZE=n python fault_worker.py raise|hang OPTIONS`."""

import json
import os
import sys
import threading
from datetime import timedelta

import torch

from aime_fast.training import trainer as module
from aime_fast.training.step import TrainingStep
from aime_fast.training.trainer import DMCVBTrainer

LIMIT = 4.0


def main(fault, options):
    torch.set_num_threads(1)
    module.time_limit = lambda: timedelta(seconds=LIMIT)
    call = TrainingStep.__call__

    def failing(self, inputs, beta):
        if self.engine.rank == 1 and trainer.progress.step == 2:
            if fault == "raise":
                raise OSError("the disk of this rank has melted")
            threading.Event().wait()
        return call(self, inputs, beta)

    TrainingStep.__call__ = failing
    trainer = DMCVBTrainer(**options)
    trainer.fit()


if __name__ == "__main__":
    os.environ.setdefault("MPLBACKEND", "Agg")
    main(sys.argv[1], json.loads(sys.argv[2]))
