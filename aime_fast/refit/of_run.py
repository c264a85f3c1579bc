"""The parts that read h of a run's model, fitted and written as an exported folder."""

from dataclasses import replace
from pathlib import Path

from aime_fast.data.backends.backend import training_device
from aime_fast.data.store import Episodes, open_store
from aime_fast.errors import UserError
from aime_fast.refit.fit import Refit, refit
from aime_fast.tasks.registry import make_tasks
from aime_fast.training.checkpoint.files import delete_folder
from aime_fast.training.checkpoint.finding import hash_of_weights
from aime_fast.training.checkpoint.loading import check_new, write_model
from aime_fast.training.checkpoint.opening import REFITTED, Note, OpenedRun, open_run, silent


def export_refit(
    run: str | Path, out: str | Path, data: str | None, actions: str | None, steps: int, note: Note = silent
) -> Refit:
    """Fit what reads h of a run's model anew (`fit.refit`), and write the model to the new folder `out`.

    The model is that of the checkpoint, whether it has learnt anew before or not. On the training episodes of `data`,
    by default the run's own, with its window length, learning rate and weights of losses. `UserError` as `export` and
    `refit` raise it, and for data without the rewards that a task of the run needs.
    """
    check_new(out)
    opened = open_run(run, note, refitted=False)
    found = _fit(opened, data, actions, steps, note)
    _write(opened, found, Path(out))
    return found


def fit_run(run: Path, steps: int, note: Note = silent) -> tuple[OpenedRun, Refit] | None:
    """Fit what reads h of the checkpoint that verbs take of a run, in at most `steps`; `keep` writes it.

    None if the run's folder has such a model of this checkpoint already. `UserError` as `export_refit` raises it.
    """
    opened = open_run(run, note, refitted=False)
    if open_run(run).refit_of == hash_of_weights(opened.folder):
        return None
    return opened, _fit(opened, None, None, steps, note)


def keep(run: Path, opened: OpenedRun, found: Refit) -> None:
    """Write a model that `fit_run` found into the run's folder, in place of an older one. Verbs take it then."""
    if (run / REFITTED).is_dir():
        delete_folder(run / REFITTED)
    _write(opened, found, run / REFITTED)


def _fit(opened: OpenedRun, data: str | None, actions: str | None, steps: int, note: Note) -> Refit:
    path = opened.data_path(data, note)
    episodes = open_store(path, "train", actions=opened.reading_of_actions(path, actions))
    opened.check_data(episodes, note)
    config, tasks = opened.config, make_tasks(opened.config.tasks)
    if not episodes.has_rewards and (lacking := [task.name for task in tasks if task.needs_rewards]):
        raise UserError(f"{episodes.description}: no rewards, which the run's task {lacking[0]!r} learns from")
    length = min(config.loader.sequence_length, max(episodes.lengths))
    model, rate = opened.model().to(training_device()), config.optim.lr
    held_out = _held_out(opened, path, actions, length, note)
    return refit(model, episodes, tasks, config.losses, length, steps, rate, config.seed, note, held_out)


def _held_out(opened: OpenedRun, path: str | None, actions: str | None, length: int, note: Note) -> Episodes | None:
    """The held-out episodes of the data, if one has a window; a line says why not."""
    try:
        episodes = open_store(path, "val", actions=opened.reading_of_actions(path, actions))
        if max(episodes.lengths) >= length:
            return episodes
        why = f"no held-out episode has {length} frames"
    except UserError as error:
        why = str(error)
    note(f"what is kept of older frames is not fitted, since held-out episodes must judge it: {why}")
    return None


def _write(opened: OpenedRun, found: Refit, folder: Path) -> None:
    write_model(found.model.cpu(), replace(opened, refit_of=hash_of_weights(opened.folder)), folder)
