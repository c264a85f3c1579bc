"""Write a run's model as safetensors and json."""

from aime_fast.commands.shared import add_run, note
from aime_fast.errors import PlainParser


def add_arguments(parser: PlainParser) -> None:
    """The options of `export`."""
    add_run(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write; must not exist")


def run(run_folder: str, out: str) -> int:
    """Export and print the folder."""
    from aime_fast.training.checkpoint.loading import export

    print(f"exported to {export(run_folder, out, note)}")
    return 0
