"""The doctor's findings, for people and for programs."""

import json
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import asdict

from aime_fast.doctor.checks import Result, can_train


def as_table(results: Sequence[Result]) -> str:
    """A row for each check: name, status, what was found and, below it, the fix; then the verdict."""
    width = max(len(result.name) for result in results)
    columns = max(shutil.get_terminal_size().columns, 80)
    lines = []
    for result in results:
        indent = " " * (width + 11)
        begin = f"{result.name:<{width}}  {result.status:<7}  "
        lines += textwrap.wrap(result.found, columns, initial_indent=begin, subsequent_indent=indent)
        # A command stays in one piece, to be copied.
        lines += [f"{indent}-> {result.fix}"] if result.fix else []
    lines.append("training can work here" if can_train(results) else "training cannot work here: mend what failed")
    return "\n".join(lines)


def as_json(results: Sequence[Result]) -> str:
    """`{"can_train": bool, "checks": [{name, status, found, fix}, ...]}`, indented."""
    return json.dumps({"can_train": can_train(results), "checks": [asdict(result) for result in results]}, indent=1)
