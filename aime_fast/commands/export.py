"""Write a run's model as safetensors and json."""

from aime_fast.commands.shared import note
from aime_fast.errors import PlainParser


def add_arguments(parser: PlainParser) -> None:
    """The options of `export`."""
    parser.add_argument("run_folder", metavar="RUN", help="folder of a run (its best checkpoint) or one checkpoint")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write; must not exist")


def run(run_folder: str, out: str) -> int:
    """Export and print the folder."""
    from aime_fast.training.checkpoint.loading import export

    print(f"exported to {export(run_folder, out, note)}")
    return 0
