"""Figures of the mixture prior, and of the latents that it explains."""

import numpy as np
from matplotlib.figure import Figure

from aime_fast.reporting.charts.style import WIDTH, colour, styled
from aime_fast.reporting.snapshot import Snapshot

NAMED = 8
"""Most components with a colour of their own."""
REST = "#bbbbbb"


def over_time(seen: Snapshot) -> Figure:
    """The prior's weights and the posterior's responsibilities of each frame of the window, as stacked areas."""
    with styled(columns=2, height=2.8) as (figure, axes):
        order, frames = np.argsort(-seen.usage), np.arange(len(seen.weights))
        names, colours = [f"component {k + 1}" for k in order[:NAMED]], [colour(k) for k in range(len(order[:NAMED]))]
        if len(order) > NAMED:
            names, colours = [*names, "all others"], [*colours, REST]
        shown = {"prior's weights": seen.weights, "posterior's responsibilities": seen.responsibilities}
        for axis, (title, values) in zip(axes, shown.items(), strict=True):
            shares = [*values[:, order[:NAMED]].T, values[:, order[NAMED:]].sum(1)][: len(names)]
            axis.stackplot(frames, shares, colors=colours, labels=names)
            axis.set(title=title, xlabel="frame of the window", ylabel="share")
            axis.set(ylim=(0, 1), xlim=(0, max(len(frames) - 1, 1)))
        axes[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7)
        return figure


def usage(seen: Snapshot) -> Figure:
    """How often each component is used, above the decoded mean of the z that it explains."""
    order, count = np.argsort(-seen.usage), len(seen.usage)
    inches = WIDTH * 0.88 / count
    side = min(0.9, 1.0 / inches)
    with styled(rows=2, height=2.4 + side * inches, heights=(2.0, side * inches)) as (figure, (bars, tiles)):
        bars.bar(range(count), seen.usage[order], color=colour(0))
        bars.axhline(0.02, color="#666666", linestyle=":", linewidth=1)
        bars.set(title="component usage on held-out frames (dotted: 2 %)", ylabel="share of the frames")
        bars.set_xticks(range(count), [str(k + 1) for k in order])
        for place, k in enumerate(order):
            box = (place - side / 2, place + side / 2, 0, 1)
            tiles.imshow(seen.component_frames[k], extent=box, aspect="auto", interpolation="nearest")
        tiles.set(ylim=(0, 1), xlabel="component by number, and what it decodes to")
        tiles.set(xticks=[], yticks=[])
        tiles.spines[:].set_visible(False)
        for axis in (bars, tiles):
            axis.set_xlim(-0.6, count - 0.4)
        return figure


def sticks(seen: Snapshot) -> Figure:
    """The expected weights of the sticks, of the posterior and of the prior; a note for a prior without sticks."""
    with styled(height=2.4) as (figure, (axis,)):
        count = seen.measure.shape[1]
        if count == 0:
            axis.text(0.5, 0.5, "this prior has no sticks that all frames share", ha="center", transform=axis.transAxes)
            axis.axis("off")
            return figure
        places = np.arange(count)
        for side, name, tint in ((0, "learnt", colour(0)), (1, "prior", colour(4))):
            label = f"{name}, E[alpha] = {seen.concentration[side]:.2f}"
            axis.bar(places - 0.2 + 0.4 * side, seen.measure[side], 0.4, color=tint, label=label)
        axis.set(title="stick weights", xlabel="component (the last takes what is left)", ylabel="expected weight")
        axis.set_xticks(places, [str(k + 1) for k in places])
        axis.legend()
        return figure


def latents(seen: Snapshot) -> Figure:
    """Held-out posterior means on their two largest principal axes, by component."""
    with styled(height=3.4) as (figure, (axis,)):
        points = seen.latents.astype(np.float64)
        centred = points - points.mean(0)
        _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
        flat = np.zeros((len(points), 2))
        found = centred @ directions[:2].T
        flat[:, : found.shape[1]] = found
        explained = np.zeros(2)
        part = sizes[:2] ** 2 / max((sizes**2).sum(), 1e-12)
        explained[: len(part)] = part
        used, counts = np.unique(seen.component, return_counts=True)
        for place, k in enumerate(used[np.argsort(-counts)]):
            tint, label = (colour(place), f"component {k + 1}") if place < NAMED else (REST, None)
            own = flat[seen.component == k]
            axis.scatter(own[:, 0], own[:, 1], s=9, alpha=0.7, linewidths=0, color=tint, label=label)
        axis.set(
            title="latents z of held-out frames",
            xlabel=f"first principal axis ({explained[0]:.0%} of the variance)",
            ylabel=f"second ({explained[1]:.0%})",
        )
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7)
        return figure


def codes(seen: Snapshot) -> Figure:
    """How often each code of the tokenizer occurs, most used first."""
    with styled(height=2.4) as (figure, (axis,)):
        shares = np.sort(seen.code_counts)[::-1] / max(seen.code_counts.sum(), 1)
        positive = shares[shares > 0]
        perplexity = float(np.exp(-(positive * np.log(positive)).sum())) if len(positive) else 0.0
        axis.fill_between(np.arange(1, len(shares) + 1), shares, step="mid", color=colour(0))
        axis.set(
            title=f"codebook: {len(positive)} of {len(shares)} codes in use, perplexity {perplexity:.1f}",
            xlabel="code, by rank",
            ylabel="share of the tokens",
            xlim=(0.5, len(shares) + 0.5),
        )
        if len(positive):
            axis.set_yscale("log")
            axis.set_ylim(positive.min() / 2, 1)
        return figure
