"""Predict memory, time, network, disk and cost of a run before any GPU is rented."""

import argparse
from dataclasses import replace

from aime_fast.commands.shared import count
from aime_fast.errors import PlainParser, UserError

TRAINS = {
    "--batch-size": "loader.batch_size",
    "--seq-len": "loader.sequence_length",
    "--preset": "preset",
    "--ds_config": "ds_config",
}
"""Options of `plan` that set what an option of `train` sets, too."""


def add_arguments(parser: PlainParser) -> None:
    """The options of `plan`."""
    add = parser.add_argument
    add("--gpu", required=True, metavar="CARD", help="rtx3090, rtx4090, a100-40, a100-80, h100, h200 or l40s")
    add("--gpus", type=count, default=1, metavar="N", help="number of cards, eight to a machine [%(default)s]")
    add("--batch-size", type=count, metavar="B", help="windows on each card [the preset's batch over all cards]")
    add("--seq-len", type=count, metavar="T", help="frames in a window [the preset's]")
    add("--preset", metavar="NAME", help="debug, small or paper [paper]")
    add(
        "--ds_config",
        "--ds-config",
        metavar="FILE",
        help="DeepSpeed configuration [the ZeRO stage that is recommended]",
    )
    add("--interconnect", default="auto", metavar="LINK", help="auto, nvlink, pcie or ethernet [%(default)s]")
    add("--epoch", default="2000x500/16", metavar="E", help="episodes x frames / stride of an epoch [%(default)s]")
    add("--epochs", type=count, default=1, metavar="N", help="epochs that --price is for [%(default)s]")
    add("--price", type=price, metavar="P", help="price of one card for an hour")
    add("--scaling", action="store_true", help="also the same batch a card on 1 to 64 cards, over each link")
    add("train", nargs="*", metavar="-- OPTION", help="options of `aime-fast train`, after --")


def price(text: str) -> float:
    """An argument that is a number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, not {text!r}")
    return value


def refuse_twice(own: list[str], train: list[str]) -> None:
    """`UserError` if one of the options `own` of `plan` is also among those of `train`, by `train`'s name."""
    named = {word.partition("=")[0].lstrip("-").replace("-", "_"): word for word in train if word.startswith("--")}
    for option in own:
        if TRAINS[option] in named:
            raise UserError(f"{option} and {named[TRAINS[option]]} after -- set the same; give one of them")


def run(
    gpu: str,
    gpus: int,
    batch_size: int | None,
    seq_len: int | None,
    preset: str | None,
    ds_config: str | None,
    interconnect: str,
    epoch: str,
    epochs: int,
    price: float | None,
    scaling: bool,
    train: list[str],
) -> int:
    """Print the plan. The exit code is 1 if it does not fit the card."""
    from aime_fast.config.command_line import parse_train_args
    from aime_fast.planning.cards import card
    from aime_fast.planning.plan import Epoch, plan
    from aime_fast.planning.scaling import scaling as scaled
    from aime_fast.planning.table import as_scaling, as_table

    own = {"--batch-size": batch_size, "--seq-len": seq_len, "--preset": preset, "--ds_config": ds_config}
    refuse_twice([option for option, value in own.items() if value is not None], train)
    chosen, passes = card(gpu), Epoch.of(epoch)
    config = parse_train_args([*(["--preset", preset] if preset else []), *train])
    batch = config.loader.batch_size if batch_size is None else batch_size * gpus
    length = config.loader.sequence_length if seq_len is None else seq_len
    config = replace(config, loader=replace(config.loader, batch_size=batch, sequence_length=length))
    config = replace(config, ds_config=ds_config or config.ds_config)
    found = plan(config, chosen, gpus, interconnect=interconnect, epoch=passes)  # type: ignore[arg-type]
    print(as_table(found, price, epochs))
    if scaling:
        print(as_scaling(scaled(config, chosen, gpus)))
    return 0 if found.fits else 1
