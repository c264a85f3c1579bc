"""After the last step of a run: what reads h learns anew from the latents of the finished model."""

from aime_fast.errors import UserError
from aime_fast.refit.of_run import refit_run
from aime_fast.training.components import Components
from aime_fast.training.engines.host_group import HostGroup
from aime_fast.training.reporter import Reporter
from aime_fast.training.run.going_on import command_to_go_on
from aime_fast.training.validation import validate


def learn_anew(run: Components, reporter: Reporter) -> None:
    """Fit dynamics, prior and heads of the run's model anew, keep them in its folder, and validate once more.

    The checkpoints stay as they are, so that the run can go on. For rank 0 alone, when nobody trains any more.
    """
    reporter.note("dynamics, prior and heads learn anew from the finished model's latents (--refit-steps 0: never)")
    try:
        found = refit_run(run.folder.path, min(run.config.refit_steps, run.progress.step), reporter.note)
    except UserError as mistake:
        reporter.note(f"they stay as they were trained: {mistake}")
        return
    except KeyboardInterrupt:
        again = command_to_go_on(run.folder.path)
        reporter.note(f"interrupted; the trained model is saved, and its dynamics learn anew with: {again}")
        raise
    if found is None:
        reporter.note("they have done so already")
    elif run.validation_backend is not None:
        windows = run.validation_backend.evaluation_windows(run.config.loader.sequence_length)
        model, step = found.model.to(run.engine.device), run.progress.step
        values, seen = validate(model, run.aggregator, windows, 1.0, run.config.seed, HostGroup(), step)
        reporter.refitted(step, values, seen)
