"""Write a run's model as safetensors and json; with --refit its dynamics learn anew from its latents first."""

from aime_fast.commands.shared import add_run, count, note
from aime_fast.errors import PlainParser, UserError


def add_arguments(parser: PlainParser) -> None:
    """The options of `export`."""
    add_run(parser)
    add = parser.add_argument
    add("--out", required=True, metavar="DIR", help="folder to write; must not exist")
    add("--refit", action="store_true", help="let what reads the LSTM's state learn anew: predictions gain most by it")
    add("--refit-steps", type=count, metavar="N", help="most steps of it [2000]")
    add("--data", metavar="PATH", help="its shards or recording [those that the run was trained on]")
    help_ = "they led to the frame of their row, or follow it [as the run read them; other data: by content]"
    add("--actions", choices=["led", "follows"], help=help_)


def run(run_folder: str, out: str, refit: bool, refit_steps: int | None, data: str | None, actions: str | None) -> int:
    """Export and print the folder."""
    from aime_fast.training.checkpoint.loading import export

    if not refit:
        given = {"--refit-steps": refit_steps, "--data": data, "--actions": actions}
        if idle := [option for option, value in given.items() if value is not None]:
            raise UserError(f"{idle[0]} belongs to --refit, which is not given")
        print(f"exported to {export(run_folder, out, note)}")
        return 0
    from aime_fast.refit.of_run import export_refit

    found = export_refit(run_folder, out, data, actions, refit_steps or 2000, note)
    print(f"exported to {out} after step {found.step} of the fit: z costs {found.nats:.1f} nats a frame kept aside")
    return 0
