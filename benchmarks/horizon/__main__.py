"""Train and judge variants of the model at a fixed budget, and print them side by side.

    python -m benchmarks.horizon --quick
    python -m benchmarks.horizon --quick --variant warmup --set losses.beta_warmup_steps=500
    python -m benchmarks.horizon --table

Interrupted, the same command continues: finished results are kept. docs/learning.md explains the protocol.
"""

import signal
import sys
from dataclasses import replace
from pathlib import Path

from aime_fast.commands.shared import count
from aime_fast.errors import PlainParser, UserError, exit_on_user_error

from . import stages
from .plan import (
    BASE,
    COLLECTED,
    QUICK,
    QUICK_SETS,
    SAMPLE,
    Budget,
    DataSet,
    Variant,
    claim,
    data_sets,
    seeds_of,
)
from .stages import StageFailed
from .table import table


def main(argv: list[str] | None = None) -> int:
    """Run the protocol; returns the exit code."""
    return exit_on_user_error(lambda: _main(sys.argv[1:] if argv is None else argv))


def _parser() -> PlainParser:
    parser = PlainParser(prog="python -m benchmarks.horizon", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="600 steps, one seed, two sets, without the parts")
    add("--variant", default=BASE, metavar="NAME", help="name of the results [%(default)s]")
    add("--set", action="append", default=[], metavar="OPTION=VALUE", help="option of training; repeatable")
    add("--sets", metavar="NAMES", help=f"data sets, separated by commas [{SAMPLE},{','.join(COLLECTED)}]")
    add(
        "--data",
        action="append",
        default=[],
        metavar="PATH",
        help="also this recording or folder of shards; repeatable",
    )
    add("--steps", type=count, metavar="N", help="steps of training [2000; 600]")
    add("--seeds", type=count, metavar="N", help="seeds of training [2; 1]")
    add("--preset", metavar="NAME", help="sizes of the model [small]")
    add("--batch-size", type=count, metavar="B", help="windows of a step [8]")
    add("--parts", action="store_true", help="also with --quick: what each part is worth")
    add("--episodes", type=count, default=60, metavar="N", help="episodes of a collected set [%(default)s]")
    add("--length", type=count, default=500, metavar="T", help="their frames [%(default)s]")
    add(
        "--out", type=Path, default=Path("runs/horizon"), metavar="DIR", help="folder of data and results [%(default)s]"
    )
    add("--table", action="store_true", help="only print what is finished")
    return parser


def _main(argv: list[str]) -> int:
    options = _parser().parse_args(argv)
    budget = QUICK if options.quick else Budget()
    chosen = {name: getattr(options, name) for name in ("steps", "seeds", "preset", "batch_size")}
    budget = replace(budget, **{name: value for name, value in chosen.items() if value is not None})
    budget = replace(budget, parts=budget.parts or options.parts)
    names = options.sets.split(",") if options.sets else [*QUICK_SETS] if options.quick else [SAMPLE, *COLLECTED]
    out = options.out.resolve()
    sets = data_sets(out, names, options.data, options.episodes, options.length)
    if options.table:
        print(table(out, budget, sets))
        return 0
    variant = Variant(options.variant, dict(_change(text) for text in options.set))
    claim(out, budget, variant)
    signal.signal(signal.SIGTERM, _interrupt)
    sets = _ready(sets, own_choice=bool(options.sets))
    runs = [seed for data in sets for seed in seeds_of(out, budget, variant, data)]
    try:
        for number, seed in enumerate(runs, 1):
            place = f"[{number}/{len(runs)}] {variant.name}, {seed.data.name}, seed {seed.seed}"
            if seed.result.exists():
                _note(f"{place}: finished before")
                continue
            _note(f"{place}: training, {budget.steps} steps")
            stages.train(seed, budget, variant)
            _note(f"{place}: evaluating")
            stages.evaluate(seed, budget)
    except StageFailed as failure:
        return failure.code
    print(table(out, budget, sets))
    return 0


def _ready(sets: list[DataSet], own_choice: bool) -> list[DataSet]:
    """The sets that are there or can be collected. If none of the default ones can, the sample stands in."""
    ready = []
    for data in sets:
        if not data.ready:
            _note(f"collecting {data.name}: {data.episodes} episodes of {data.length} frames")
        try:
            stages.collect(data)
            ready.append(data)
        except StageFailed as failure:
            if own_choice or failure.code != 2:
                raise UserError(f"{data.name} could not be collected; the reason stands above") from failure
            _note(f"{data.name} is left out: it could not be collected, for the reason above")
    return ready or [DataSet(SAMPLE)]


def _change(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise UserError(f"--set {text}: write OPTION=VALUE, such as losses.beta_warmup_steps=0")
    return name.replace("-", "_"), value


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
