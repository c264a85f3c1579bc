"""The table of a profile: what each phase of a step costs, beside what the card could do."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from aime_fast.profiling.phases import OCCASIONAL
from aime_fast.profiling.trace import ELSEWHERE, PhaseTimes, Trace
from aime_fast.profiling.work import Work

REPLAY = "replay"


@dataclass(frozen=True)
class Peak:
    """What a card could do at most."""

    card: str
    flops: float
    """Operations a second of products in the run's precision."""
    bytes: float
    """Bytes a second of its memory."""


@dataclass(frozen=True)
class Row:
    """One phase; times in milliseconds a step, or each time for what follows some steps only."""

    phase: str
    times: float
    """Entries a step; all entries of what follows some steps only."""
    host: float
    device: float
    """Time of kernels and copies on a card; on a CPU, of operators."""
    idle: float
    """Host time within the phase in which the device did nothing."""
    launches: float
    """Kernels and copies on a card; on a CPU, operators that a GPU would start."""
    flops: float | None
    """Operations a second of device time; None without products."""
    bytes: float | None
    """Bytes a second of device time; None where operators were joined or nothing was counted."""
    largest: tuple[tuple[str, float], ...]
    """Kernels or operators with the most time, and their milliseconds."""

    @property
    def occasional(self) -> bool:
        """Whether it follows some steps only."""
        return self.phase in OCCASIONAL


@dataclass(frozen=True)
class Profile:
    """What the steps of one run cost."""

    title: str
    """Run, sizes and machine."""
    steps: int
    """Steps that were recorded."""
    step_ms: float
    """A step without the profiler, measured before."""
    recorded_ms: float
    """A step under the profiler."""
    on_card: bool
    rows: tuple[Row, ...]
    peak: Peak | None
    """None on a CPU and for a card that is not known."""
    load_ms: float
    """Reading one batch on its own thread."""

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        return asdict(self)


def make_profile(
    title: str, trace: Trace, work: Mapping[str, Work], step_ms: float, joined: bool, peak: Peak | None
) -> Profile:
    """The table of a trace.

    work: of one step as written, by phase. joined: whether the recorded steps were compiled, so that operators read and
    write less than `work` says.
    """
    steps = len(trace.steps)
    rows = tuple(_row(times, steps, _work_of(times.name, work), trace.on_card, joined) for times in _ordered(trace))
    loads = [span.end - span.start for span in trace.loading if span.name == "data"]
    load = sum(loads) / max(len(loads), 1)
    return Profile(title, steps, step_ms, trace.step_time / 1e3, trace.on_card, rows, peak, load / 1e3)


def _ordered(trace: Trace) -> list[PhaseTimes]:
    """Phases of the step in order, what lies elsewhere, then what follows some steps only."""
    last = lambda times: (times.name in OCCASIONAL, times.name == ELSEWHERE)  # noqa: E731
    return sorted(trace.times.values(), key=last)


def _work_of(phase: str, work: Mapping[str, Work]) -> Work:
    if phase != REPLAY:
        return work.get(phase, Work())
    parts = [each for name, each in work.items() if name not in ("data", "elsewhere")]
    return Work(*(sum(getattr(part, field) for part in parts) for field in ("flops", "bytes", "launches")))


def _row(times: PhaseTimes, steps: int, work: Work, on_card: bool, joined: bool) -> Row:
    occasional = times.name in OCCASIONAL
    count = times.times if occasional else steps
    seconds = times.device / count / 1e6
    known = seconds > 0 and not occasional
    return Row(
        phase=times.name,
        times=times.times if occasional else times.times / steps,
        host=times.host / count / 1e3,
        device=times.device / count / 1e3,
        idle=times.idle / count / 1e3,
        launches=times.launches / count if on_card else work.launches,
        flops=work.flops / seconds if known and work.flops else None,
        bytes=work.bytes / seconds if known and work.bytes and not joined else None,
        largest=tuple((name, us / count / 1e3) for name, us in times.largest),
    )


def table(profile: Profile) -> str:
    """The profile as text: a line a phase, and below it what the columns mean."""
    device = "card ms" if profile.on_card else "ops ms"
    head = [
        "phase",
        "host ms",
        device,
        "idle ms",
        "launches",
        *_rates("GFLOP/s", "of peak", "GB/s", "of peak", profile),
    ]
    lines = [_cells(row, profile) for row in profile.rows if not row.occasional]
    own = [row for row in profile.rows if not row.occasional]
    total = ["a step", *(_ms(sum(getattr(row, name) for row in own)) for name in ("host", "device", "idle"))]
    lines.append([*total, f"{sum(row.launches for row in own):,.0f}", *_rates("", "", "", "", profile)])
    lines += [_cells(row, profile) for row in profile.rows if row.occasional]
    body = _aligned([head, *lines])
    return "\n".join([profile.title, "", *body, "", *_legend(profile)])


def _rates(flops: str, of_flops: str, size: str, of_size: str, profile: Profile) -> list[str]:
    """The last cells of a line; what is compared with a peak only where there is one."""
    return [flops, of_flops, size, of_size] if profile.peak else [flops, size]


def _cells(row: Row, profile: Profile) -> list[str]:
    name = f"{row.phase} (each of {row.times:.0f})" if row.occasional else row.phase
    flops, size, peak = row.flops, row.bytes, profile.peak
    return [
        name,
        *map(_ms, (row.host, row.device, row.idle)),
        f"{row.launches:,.0f}" if row.launches else "",
        *_rates(
            f"{flops / 1e9:,.1f}" if flops else "",
            f"{flops / peak.flops:.0%}" if flops and peak else "",
            f"{size / 1e9:,.1f}" if size else "",
            f"{size / peak.bytes:.0%}" if size and peak else "",
            profile,
        ),
    ]


def _ms(value: float) -> str:
    return f"{value:,.2f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest cell, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return lines


def _legend(profile: Profile) -> list[str]:
    lines = [
        f"Milliseconds a step, mean of {profile.steps}; log, validation and checkpoint each. Time belongs to the "
        "innermost phase.",
        f"A step takes {profile.step_ms:.1f} ms without the profiler and {profile.recorded_ms:.1f} ms under it.",
        f"A batch is read in {profile.load_ms:.1f} ms, on a thread of its own.",
    ]
    if profile.on_card:
        lines.append("card: kernels and copies by the phase that launched them. idle: nothing ran on the card.")
    else:
        lines.append(
            "No card: `ops ms` is the time of the CPU's operators, `idle ms` is Python and autograd between them,\n"
            "`launches` are the operators that a GPU would start for the step as written."
        )
    if profile.peak:
        peak = profile.peak
        lines.append(f"Peak of {peak.card}: {peak.flops / 1e12:,.1f} TFLOP/s, {peak.bytes / 1e9:,.0f} GB/s.")
    lines.append("GFLOP/s: of products. GB/s: of what operators read and write, of which caches may hold a part.")
    return lines
