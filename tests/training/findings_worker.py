"""A rank of a run in which one made failure is found from step 3 on: `RANK=r WORLD_SIZE=n python ... OPTIONS`."""

import json
import os
import sys
from functools import partial

import torch

from aime_fast.errors import exit_on_user_error
from aime_fast.reporting.findings.rules import Rule
from aime_fast.reporting.findings.watch import Watch
from aime_fast.training import reporter
from aime_fast.training.trainer import DMCVBTrainer

FOUND_AT = 3


def watch_for(name, look):
    """`Watch` with this one rule."""
    return partial(Watch, rules=[Rule(name, "something broke", "change --optim.lr", look)])


def main(options):
    torch.set_num_threads(1)
    reporter.Watch = watch_for("starved-loop", lambda run: "it waits" if run.step >= FOUND_AT else None)

    def train():
        trainer = DMCVBTrainer(**options)
        try:
            trainer.fit()
        finally:
            trainer.close()

    return exit_on_user_error(train)


if __name__ == "__main__":
    os.environ.setdefault("MPLBACKEND", "Agg")
    sys.exit(main(json.loads(sys.argv[1])))
