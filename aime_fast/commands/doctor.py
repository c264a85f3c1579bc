"""Check whether this machine can train, and what to install."""

from aime_fast.errors import PlainParser


def add_arguments(parser: PlainParser) -> None:
    """The options of `doctor`."""
    parser.add_argument("--json", action="store_true", help="print the checks as JSON")


def run(json: bool) -> int:
    """Print the checks. The exit code is 1 if training cannot work."""
    from aime_fast.doctor import as_json, as_table, can_train, examine
    from aime_fast.kernel_mode import check_kernel_mode

    check_kernel_mode()
    results = examine()
    print(as_json(results) if json else as_table(results))
    return 0 if can_train(results) else 1
