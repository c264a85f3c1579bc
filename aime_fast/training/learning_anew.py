"""After the last step of a run: what reads h learns anew from the latents of the finished model."""

from aime_fast.errors import UserError
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder as WorldModel
from aime_fast.refit.of_run import fit_run, keep
from aime_fast.training.components import Components
from aime_fast.training.engines.host_group import HostGroup
from aime_fast.training.reporter import Reporter
from aime_fast.training.run.device import memory_ended
from aime_fast.training.run.interruptions import Stopped, stopping
from aime_fast.training.validation import validate


def learn_anew(run: Components, reporter: Reporter) -> int:
    """Fit dynamics, prior, heads and what is kept of the run's model, validate it, and keep it in the run's folder.

    The checkpoints stay as they are, so that the run can go on. What keeps the fit from its end is said in a line, and
    the run is complete without it. For rank 0 alone, when nobody trains any more. Returns the signal that ended it, or
    0; then the run does it when it is resumed.
    """
    reporter.note(
        "dynamics, prior and heads learn anew from the finished model's latents (--refit-steps 0 turns this off)"
    )
    try:
        with stopping():
            found = fit_run(run.folder.path, min(run.config.refit_steps, run.progress.step), reporter.note)
            if found is None:
                reporter.note("they have done so already")
                return 0
            opened, fitted = found
            _validate(run, reporter, fitted.model)
            keep(run.folder.path, opened, fitted)
    except Stopped as request:
        return request.number
    except (UserError, OSError) as error:
        reporter.note(f"they stay as they were trained: {error}")
    except RuntimeError as error:
        if not memory_ended(error):
            raise
        reporter.note("they stay as they were trained: the GPU has no memory left for it; resume the run alone on it")
    return 0


def _validate(run: Components, reporter: Reporter, model: WorldModel) -> None:
    if run.validation_backend is None:
        return
    windows, step = run.validation_backend.evaluation_windows(run.config.loader.sequence_length), run.progress.step
    model = model.to(run.engine.device)
    values, seen = validate(model, run.aggregator, windows, 1.0, run.config.seed, HostGroup(), step)
    reporter.refitted(step, values, seen)
