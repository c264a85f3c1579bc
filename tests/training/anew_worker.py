"""One rank of a run under ZeRO-2 whose dynamics learn anew: `anew_worker.py DATA OUT`."""

import sys
from contextlib import closing

from recording import tiny_options

from aime_fast.training.trainer import DMCVBTrainer

options = tiny_options(sys.argv[1], sys.argv[2], steps=2, refit_steps=2, ds_config="zero2")
with closing(DMCVBTrainer(**options)) as trainer:
    assert trainer.fit().steps == 2
