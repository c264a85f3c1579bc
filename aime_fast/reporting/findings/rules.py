"""The rules: each looks at the rows of a run and gives its evidence, or None where nothing is wrong.

Thresholds are far from what healthy runs show (docs/findings.md has both).
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from aime_fast.reporting.findings.history import HELD_OUT, RECENT, History

SETTLED = 100
"""Steps before collapses are judged: early values say nothing."""
LEARNT = 1000
"""Steps before what a model has learnt is judged: earlier, healthy models may hold no more than a broken one."""
MEMORY = 50
"""Rows back to which a gradient's usual norm is sought."""
Look = Callable[[History], str | None]


@dataclass(frozen=True)
class Rule:
    """A failure that can be named."""

    name: str
    title: str
    """What has happened, in one clause."""
    remedy: str
    """What to change, with the flag."""
    look: Look


def _kl_collapse(run: History) -> str | None:
    kl = run.recent("kl_z")
    if run.step < SETTLED or kl is None or kl >= 1.0:
        return None
    return f"kl_z is {kl:.2g} nats a frame (healthy: above 5): the posterior says what the prior says"


def _component_collapse(run: History) -> str | None:
    mass, used = run.recent("top_component_mass"), run.recent("effective_components")
    if run.facts.components < 2 or run.step < SETTLED or mass is None or used is None or mass < 0.99:
        return None
    return f"one of {run.facts.components} components explains {mass:.1%} of the frames (effective number {used:.2f})"


def _attention_collapse(run: History) -> str | None:
    overlap = run.recent("attention_diversity")
    if run.facts.slots < 2 or run.step < SETTLED or overlap is None or overlap < 0.8:
        return None
    return f"the maps of two slots have a cosine of {overlap:.2f} on average (healthy: below 0.5)"


def _gradient_explosion(run: History) -> str | None:
    skipped = run.values("skipped_steps")
    if len(skipped) > RECENT and skipped[-1] > skipped[-1 - RECENT]:
        return f"{skipped[-1] - skipped[-1 - RECENT]:.0f} recent steps were skipped: their gradient was not finite"
    norms, now = run.values("grad_norm")[-MEMORY:], run.recent("grad_norm")
    if now is None or len(norms) < 2 * RECENT:
        return None
    usual = min(median(norms[start : start + RECENT]) for start in range(len(norms) - RECENT))
    if now < 20 * max(usual, run.facts.clip / 2):
        return None
    return f"the gradient's norm is {now:.3g}; it was {usual:.3g}, and updates are clipped at {run.facts.clip:g}"


def _dead_codes(run: History) -> str | None:
    perplexity = run.recent("perplexity")
    least, healthy = max(2.0, 0.005 * run.facts.codes), max(4.0, 0.02 * run.facts.codes)
    if run.facts.codes < 4 or run.step < SETTLED or perplexity is None or perplexity >= least:
        return None
    return f"a batch uses {perplexity:.1f} of {run.facts.codes} codes (perplexity; healthy: above {healthy:.1f})"


def _ignored_actions(run: History) -> str | None:
    worth = run.values("action_nats", max(HELD_OUT, key=lambda split: len(run.values("action_nats", split))))
    if not run.facts.action_dim or run.step < LEARNT or len(worth) < 2 or max(worth[-2:]) > 0.05:
        return None
    return (
        f"with another window's actions the prior predicts z as well: they are worth {worth[-1]:.3f} nats a frame "
        "on held-out windows"
    )


def _starved_task(run: History) -> str | None:
    if len(run.facts.tasks) < 2 or run.step < SETTLED:
        return None
    norms = {task: run.recent(f"grad_norm_{task}") for task in run.facts.tasks}
    known = {task: norm for task, norm in norms.items() if norm is not None}
    if len(known) < len(norms):
        return None
    task, least = min(known.items(), key=lambda item: item[1])
    if least == 0.0:
        return f"{task} has no gradient"
    # The other solvers give each task's direction the same say, whatever its length.
    share = least / sum(known.values())
    if run.facts.solver not in ("sum", "uncertainty") or share > 0.01:
        return None
    return f"{task} has {share:.2%} of the gradients' norms, and the solver {run.facts.solver} adds them as they are"


def _overfitting(run: History) -> str | None:
    name = "bits_per_dim"
    for split in HELD_OUT:
        held_out = run.values(name, split)
        if len(held_out) < 3:
            continue
        best = min(range(len(held_out)), key=held_out.__getitem__)
        step = run.steps(name, split)[best]
        then, now = run.at(name, step), run.recent(name)
        # Less than this two validations of a healthy run may differ by: two held-out episodes, a large learning rate.
        rise = 0.05 * abs(held_out[best])
        if min(held_out[-2:]) > held_out[best] + rise and best < len(held_out) - 2 and then and now and now < then:
            return (
                f"held-out bits_per_dim rose from {held_out[best]:.3f} at step {step} to {held_out[-1]:.3f}, while "
                f"training's fell from {then:.3f} to {now:.3f}"
            )
    kl, kl_held_out = run.recent("kl_z"), run.held_out("kl_z")
    if kl and kl_held_out and run.step >= SETTLED and kl > 1.0 and kl_held_out > 2.5 * kl:
        return f"kl_z is {kl_held_out:.0f} nats a frame on held-out episodes and {kl:.0f} in training"
    return None


def _starved_loop(run: History) -> str | None:
    wait = run.recent("data_wait")
    if wait is None or wait < 0.2:
        return None
    return f"{wait:.0%} of the time is spent waiting for data (healthy: below 5 %)"


def _mean_frame(run: History) -> str | None:
    psnr, mean = run.held_out("psnr"), run.held_out("psnr_mean_frame")
    if psnr is None or mean is None or run.step < LEARNT or psnr > mean + 0.3:
        return None
    return f"reconstructions have {psnr:.1f} dB and the mean training frame has {mean:.1f} dB"


RULES = (
    Rule(
        "kl-collapse",
        "z carries nothing",
        "raise --losses.lambda-recon or --losses.free-bits, or let beta rise slowly with --losses.beta-warmup-steps",
        _kl_collapse,
    ),
    Rule(
        "component-collapse",
        "the mixture is a single Gaussian",
        "raise --losses.entropy-weight; or save its cost with --model.prior gaussian",
        _component_collapse,
    ),
    Rule(
        "attention-collapse",
        "all slots look at the same place",
        "train the predictive task too (--tasks), lower --optim.lr, or use fewer slots (--model.num-slots)",
        _attention_collapse,
    ),
    Rule(
        "gradient-explosion",
        "gradients explode",
        "lower --optim.lr, lengthen --optim.warmup-steps, or lower --optim.clip; go on from an earlier checkpoint",
        _gradient_explosion,
    ),
    Rule(
        "dead-codes",
        "the codebook is hardly used",
        "lower --model.codebook-decay or --model.num-codes, and train the perceiver task (--tasks)",
        _dead_codes,
    ),
    Rule(
        "ignored-actions",
        "predictions do not depend on the actions",
        "check what the actions mean with `aime-fast inspect DATA`; train longer, or on more episodes",
        _ignored_actions,
    ),
    Rule(
        "starved-task",
        "a task has no say in the update",
        "use --balancing.solver rotation, or raise the weights of the task's terms; with one slot `predictive` has "
        "nothing to learn: leave it out of --tasks",
        _starved_task,
    ),
    Rule(
        "overfitting",
        "what is learnt does not carry over to held-out episodes",
        "record more episodes, stop earlier (--steps), or take a smaller model; `aime-fast evaluate` uses the best "
        "checkpoint",
        _overfitting,
    ),
    Rule(
        "starved-loop",
        "the step waits for data",
        "use --backend memory or resident, or pack with --codec raw (docs/data.md)",
        _starved_loop,
    ),
    Rule(
        "mean-frame",
        "the model draws the mean frame",
        "raise --losses.lambda-mean or --optim.lr, and look at the frames with `aime-fast inspect DATA --sheet`",
        _mean_frame,
    ),
)
RULE_NAMES = tuple(rule.name for rule in RULES)
