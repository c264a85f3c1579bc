"""What to do about the three largest parts of a step. Each line rests on a figure of the profile."""

from collections.abc import Iterator
from dataclasses import dataclass

from aime_fast.profiling.report import REPLAY, Profile, Row
from aime_fast.profiling.trace import ELSEWHERE

NEAR_PEAK = 0.5
"""Above this part of a card's peak, the peak bounds a phase."""


@dataclass(frozen=True)
class Setting:
    """How the run that was recorded is set."""

    compiled: bool
    captured: bool
    """Whether steps were replayed as a CUDA graph."""
    bf16: bool
    threads: int
    cores: int
    """CPUs that this process may use."""
    every: dict[str, int]
    """Steps from one `log`, `validation` and `checkpoint` to the next, in a whole run."""


@dataclass(frozen=True)
class Item:
    """A part of a step, and what to do about it."""

    ms: float
    """Milliseconds of a step; of what follows some steps only, its share of one."""
    what: str
    do: str


def largest_items(profile: Profile, setting: Setting, count: int = 3) -> list[Item]:
    """The parts of a step that take most time, largest first."""
    return sorted(_items(profile, setting), key=lambda item: -item.ms)[:count]


def advice(profile: Profile, setting: Setting) -> str:
    """One line each about the three largest items."""
    items = largest_items(profile, setting)
    lines = [
        f"{number}. {item.what}: {item.ms:.2f} ms a step, {item.ms / profile.recorded_ms:.0%}. {item.do}"
        for number, item in enumerate(items, 1)
    ]
    return "\n".join(["The three largest items, and what to do", *lines])


def _items(profile: Profile, setting: Setting) -> Iterator[Item]:
    busy = _on_a_card if profile.on_card else _on_a_cpu
    own = [row for row in profile.rows if not row.occasional]
    for row in own:
        if row.phase not in ("wait", ELSEWHERE) and row.device:
            yield Item(row.device, row.phase, f"{_most(row)} {busy(row, profile, setting)}")
    for row in own:
        if row.phase == "wait":
            yield Item(row.host, "waiting for data", _waiting(profile))
    gaps = [row for row in own if row.phase != "wait"]
    if gaps:
        where = max(gaps, key=lambda row: row.idle)
        name = "the card idle" if profile.on_card else "between operators"
        yield Item(sum(row.idle for row in gaps), name, f"Most of it in {where.phase}. {_idle(profile, setting)}")
    for row in profile.rows:
        if row.occasional:
            yield Item(row.host / setting.every[row.phase], row.phase, _occasional(row, setting.every[row.phase]))


def _most(row: Row) -> str:
    """Where most of a phase's time goes."""
    return f"Most in {', '.join(f'{name[:60]} ({ms:.2f} ms)' for name, ms in row.largest[:2])}."


def _waiting(profile: Profile) -> str:
    rest = profile.recorded_ms - sum(row.host for row in profile.rows if row.phase == "wait")
    if profile.load_ms > rest:
        return (
            f"A batch is read in {profile.load_ms:.1f} ms, longer than the rest of a step: decoded frames in memory "
            "are read faster, --backend memory, or resident on a card (docs/data.md)."
        )
    return (
        f"A batch is read in {profile.load_ms:.1f} ms, less than a step, so reading and training compete for the same "
        "cores: fewer --threads leave one to the reader."
    )


def _idle(profile: Profile, setting: Setting) -> str:
    added = max(0.0, profile.recorded_ms - profile.step_ms)
    own = f"The profiler adds {added:.1f} ms itself."
    if not profile.on_card:
        if setting.compiled:
            return f"What is left is between compiled graphs; a larger batch makes it a smaller part. {own}"
        return f"It is Python and autograd; --compile on joins operators. {own}"
    if setting.captured:
        return f"The step is one launch already, so the host works between steps: log less often. {own}"
    if setting.compiled:
        return f"The host launches too slowly: --cuda-graph auto replays all launches at once. {own}"
    return f"The host launches too slowly: --cuda-graph auto replays all launches, --compile on makes fewer. {own}"


def _on_a_cpu(row: Row, profile: Profile, setting: Setting) -> str:
    if row.phase in ("step", "averages"):
        return "It reads and writes every parameter once; there is nothing to set."
    if row.phase == "balance":
        if setting.compiled:
            return "Its loops are joined already; its time follows the number of parameters and tasks."
        return "--compile on joins its loops over the gradients (docs/performance.md, phases)."
    if setting.threads < setting.cores:
        return f"It runs on {setting.threads} of {setting.cores} cores: --threads {setting.cores} uses all."
    speed = f" at {row.flops / 1e9:.0f} GFLOP/s" if row.flops else ""
    return (
        f"Its products run{speed} on all cores that there are: fewer come from a smaller --preset or shorter windows."
    )


def _on_a_card(row: Row, profile: Profile, setting: Setting) -> str:
    each = row.device / row.launches * 1e3 if row.launches else 0.0
    peak = profile.peak
    if peak is None:
        return f"A kernel takes {each:.1f} us; the peak of this card is not known, so no bound is named."
    products = (row.flops or 0.0) / peak.flops
    memory = (row.bytes or 0.0) / peak.bytes
    if products >= NEAR_PEAK:
        more = "a smaller model" if setting.bf16 else "--optim.precision bf16"
        return f"Its products reach {products:.0%} of the peak: {more} is what makes it faster."
    if memory >= NEAR_PEAK:
        more = "larger kernels of its own" if setting.compiled else "--compile on, which joins operators,"
        return f"Its memory traffic reaches {memory:.0%} of the peak: {more} would save some of it."
    graph = "" if setting.captured or row.phase == REPLAY else " and --cuda-graph auto"
    return (
        f"It reaches {products:.0%} of the products' peak and {memory:.0%} of the memory's, with kernels of {each:.1f} "
        f"us: they are too small for the card; a larger --loader.batch-size{graph} fills it better."
    )


def _occasional(row: Row, every: int) -> str:
    if row.phase == "validation":
        return f"It takes {row.host:.0f} ms each epoch of {every} steps; fewer held-out episodes make it shorter."
    option = {"log": "--logging.log-every", "checkpoint": "--checkpoint-every"}[row.phase]
    return f"It takes {row.host:.1f} ms every {every} steps; {option} {2 * every} halves its share."
