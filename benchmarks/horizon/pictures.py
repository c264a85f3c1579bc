"""Draws the README's pictures of predictions: `python -m benchmarks.horizon.pictures FOLDER RUN [RUN ...]`.

`horizon.png` has a panel for each run, of what `aime-fast evaluate RUN` kept there. `imagined.png` has three rows for
each: a held-out window, what the model imagines after five frames, and that with another window's actions.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from aime_fast.data.store import open_store
from aime_fast.errors import UserError, exit_on_user_error
from aime_fast.evaluation.kept import FILE, read_result
from aime_fast.evaluation.open_loop import CONSTANT, COPY, MEAN, OTHER
from aime_fast.evaluation.windows import Windows
from aime_fast.reporting.charts.style import colour, save, styled
from aime_fast.reporting.figures import pixels
from aime_fast.reporting.page.drawings import kept_curve
from aime_fast.training.checkpoint.opening import OpenedRun, open_run

HORIZONS = (1, 2, 5, 10, 15)
SHOWN = (1, 2, 3, 5, 7, 9, 11, 13, 15)
CURVES = {MEAN: "model", OTHER: "another window's actions", COPY: "last frame copied", CONSTANT: "mean training frame"}
CONTEXT = 5


def horizon(runs: dict[str, OpenedRun], results: dict[str, dict]) -> Figure:
    """PSNR by frames ahead, with intervals, a panel for each run."""
    with styled(len(runs), 2.7) as (figure, axes):
        for name, axis in zip(runs, axes, strict=True):
            for place, (row, label) in enumerate(CURVES.items()):
                points = {h: found for h, found in kept_curve(results[name]["psnr"][row]).items() if h in HORIZONS}
                means, low, high = np.array(list(points.values())).reshape(-1, 3).T
                axis.plot(list(points), means, color=colour(place), marker="os^v"[place], markersize=4, label=label)
                axis.fill_between(list(points), low, high, color=colour(place), alpha=0.15, linewidth=0)
            axis.set(title=_task(runs[name]), xlabel="frames ahead", xticks=HORIZONS)
        axes[0].set_ylabel("PSNR in dB")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(CURVES))
        return figure


@torch.no_grad()
def imagined(runs: dict[str, OpenedRun]) -> Figure:
    """Rows of true frames and of one future each, by its own and by another window's actions."""
    rows = [row for opened in runs.values() for row in _rows(opened)]
    with styled(len(SHOWN), 0.78 * len(rows) + 0.4, len(rows)) as (figure, axes):
        for number, (label, frames) in enumerate(rows):
            for column, ahead in enumerate(SHOWN):
                axis = axes[number * len(SHOWN) + column]
                axis.imshow(frames[ahead - 1], interpolation="none")
                axis.set(xticks=[], yticks=[], frame_on=False)
                if number == len(rows) - 1:
                    axis.set_xlabel(str(ahead))
            axes[number * len(SHOWN)].set_ylabel(label, rotation=0, ha="right", va="center")
        figure.supxlabel("frames ahead")
        figure.set_layout_engine("constrained", h_pad=0.01, w_pad=0.01, hspace=0, wspace=0)
        return figure


def _rows(opened: OpenedRun) -> list[tuple[str, np.ndarray]]:
    path = opened.data_path(None)
    held_out, length = open_store(path, "val", actions=opened.reading_of_actions(path, None)), CONTEXT + SHOWN[-1]
    long = [episode for episode, frames in enumerate(held_out.lengths) if frames >= length]
    if len(long) < 2:
        raise UserError(f"{held_out.description}: two held-out episodes of {length} frames or more are needed")
    middle = [(episode, (held_out.lengths[episode] - length) // 2) for episode in (long[0], long[-1])]
    windows = Windows(held_out, length, np.array(middle)).batch(np.arange(2))
    frames, model = windows.frames(), opened.model()
    state = model.observe(frames[:1, :CONTEXT], windows.actions[:1, :CONTEXT])
    found = [(f"{_task(opened)}: true", pixels(frames[0, CONTEXT:]))]
    for label, actions in (("imagined", windows.actions[:1]), ("other actions", windows.actions[1:])):
        future = model.imagine(state, actions[:, CONTEXT - 1 : -1], samples=1, key=0)
        found.append((label, pixels(model.decode(future).mean()[0])))
    return found


def _task(opened: OpenedRun) -> str:
    return (opened.data.environment if opened.data else None) or opened.folder.name


def main(folder: str, *names: str) -> None:
    """Write both pictures into `folder`."""
    runs = {name: open_run(name, print) for name in names}
    results = {name: read_result(Path(name) / FILE) for name in names}
    if missing := [name for name, result in results.items() if result is None]:
        raise UserError(f"{missing[0]} has not been judged; run `aime-fast evaluate {missing[0]}` first")
    save(horizon(runs, results), Path(folder) / "horizon.png")
    save(imagined(runs), Path(folder) / "imagined.png")
    print(f"wrote {folder}/horizon.png and {folder}/imagined.png")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit((__doc__ or "").splitlines()[0])
    sys.exit(exit_on_user_error(lambda: main(*sys.argv[1:])))
