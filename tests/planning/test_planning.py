"""Plans: they grow with what they are asked for, add up, and refuse what cannot be."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aime_fast.balancing.layouts.communication import traffic
from aime_fast.balancing.layouts.rounded import BLOCK
from aime_fast.commands.main import main
from aime_fast.config import preset_config
from aime_fast.errors import UserError
from aime_fast.planning.cards import card, cards
from aime_fast.planning.network import link_of, waiting
from aime_fast.planning.plan import PUBLISHED, Epoch, plan
from aime_fast.planning.ranks import on_a_rank
from aime_fast.planning.rehearsal import Sending, rehearse, with_sizes
from aime_fast.planning.scaling import scaling


def debug(batch, frames=4, **changes):
    config = preset_config("debug")
    return replace(config, loader=replace(config.loader, batch_size=batch, sequence_length=frames), **changes)


def figures(found):
    return found.step_seconds, found.memory.total, sum(phase.flops for phase in found.phases)


def test_longer_windows_and_larger_batches_need_more():
    for plans in (
        [plan(debug(batch), card("rtx3090")) for batch in (2, 4)],
        [plan(debug(2, frames), card("rtx3090")) for frames in (3, 4)],
    ):
        for less, more in pairwise(plans):
            assert all(one < other for one, other in zip(figures(less), figures(more), strict=True))


def test_more_gpus_wait_longer_and_send_more():
    plans = [plan(debug(2 * gpus), card("rtx3090"), gpus) for gpus in (2, 4, 16)]
    for less, more in pairwise(plans):
        assert less.phases[-1].name == more.phases[-1].name == "network"
        assert less.phases[-1].seconds < more.phases[-1].seconds
        assert less.phases[-1].sent < more.phases[-1].sent
        assert more.memory.total <= less.memory.total, "task gradients are shards"


def test_a_plan_adds_up():
    found = plan(debug(16), card("h100"), 4)
    assert found.step_seconds == pytest.approx(sum(phase.seconds for phase in found.phases))
    assert found.epoch_seconds == pytest.approx(found.step_seconds * found.steps_per_epoch)
    assert found.cost(2.0, epochs=3) == pytest.approx(3 * 4 * 2.0 * found.epoch_seconds / 3600)
    assert {phase.name for phase in found.phases} >= {"forward", "backward/elbo", "balance", "step", "network"}
    assert found.largest_batch >= 4
    assert found.disk == PUBLISHED.episodes * PUBLISHED.frames * (64 * 64 * 3 + 21 * 4 + 5)


def test_a_card_that_is_better_in_all_is_never_slower():
    slow, fast = (plan(debug(8), card(name)).step_seconds for name in ("h100", "h200"))
    assert fast <= slow


def test_as_written_the_host_bounds_the_step_and_a_graph_ends_that():
    written, graph = (plan(debug(4, cuda_graph=choice), card("h100")) for choice in ("off", "auto"))
    assert written.step_seconds > 3 * graph.step_seconds
    assert written.phases[-1].name == "host"


def test_frames_that_fit_lie_on_the_card():
    few, many = (plan(debug(4), card("rtx3090"), epoch=Epoch(episodes, 500, 16)) for episodes in (20, 2000))
    assert few.memory.data == pytest.approx(few.disk)
    assert many.memory.data == 0, "they are more than half of its memory"


def test_the_published_epoch():
    assert PUBLISHED.windows(16) == 62_000
    assert PUBLISHED.windows(32) == 60_000
    assert Epoch.of("3x10/2") == Epoch(3, 10, 2)
    for text in ("3x10", "0x10/2", "3x10/0", "many"):
        with pytest.raises(UserError, match="EPISODESxFRAMES/STRIDE"):
            Epoch.of(text)


def test_scaling_falls_with_gpus_and_with_slower_links():
    rows = {(row.link, row.gpus): row for row in scaling(debug(2), card("a100-80"))}
    assert rows["none", 1].efficiency == 1
    for link in ("nvlink", "pcie", "ethernet"):
        numbers = sorted(gpus for name, gpus in rows if name == link)
        assert [rows[link, n].efficiency for n in numbers] == sorted(
            (rows[link, n].efficiency for n in numbers), reverse=True
        )
    assert rows["nvlink", 8].efficiency > rows["pcie", 8].efficiency > rows["ethernet", 8].efficiency
    assert ("nvlink", 16) not in rows, "NVLink ends at the machine"


@given(
    sizes=st.lists(st.integers(1, 10**7), min_size=1, max_size=6),
    gpus=st.integers(2, 64),
    seconds=st.lists(st.floats(0, 1e-2), min_size=3, max_size=3),
    data=st.data(),
)
def test_traffic_and_waiting_grow(sizes, gpus, seconds, data):
    reach = [frozenset(data.draw(st.sets(st.integers(0, 2)))) for _ in sizes]
    link = link_of(card("h100"), gpus, "ethernet")
    sent, more = (traffic(sizes, reach, number, 0) for number in (gpus, gpus + 1))
    larger = traffic([2 * size for size in sizes], reach, gpus, 0)
    assert sent.total <= more.total
    assert larger.reduced == pytest.approx(2 * sent.reduced)
    waited, rounding = waiting(seconds, sent, link, gpus), 1 + 1e-9  # of float64 sums and differences
    assert waited <= rounding * waiting(seconds, larger, link, gpus)
    assert waited <= rounding * waiting([0.0] * 3, sent, link, gpus), "passes hide reductions"


def test_gradients_in_bfloat16_and_an_update_in_8_bits_are_sent_in_half_and_a_quarter():
    """Beside the Gram matrices, which stay float64: 2 x 3/4 x 8 bytes of two groups' [4, 4] and twelve products."""
    sums = 2 * 0.75 * 8 * (2 * 16 + 12)
    plans = [plan(debug(8), card("rtx3090"), 4, ds_config=name) for name in ("zero0", "zero0-bf16", "zero0-fp8")]
    wide, half, least = (found.phases[-1] for found in plans)
    gathered = 0.75 * rehearse(with_sizes(debug(8)), 2, "cuda").parameters
    assert half.sent - sums == pytest.approx((wide.sent - sums) / 2)
    assert least.sent == pytest.approx(half.sent - 2 * gathered + (1 + 1 / BLOCK) * gathered)
    assert least.seconds < half.seconds < wide.seconds
    for found, words in zip(plans, ("update in float32", "update in bfloat16", "update in 8 bits"), strict=True):
        assert words in found.assumptions[-1]


def test_a_rank_balances_its_shard_and_rounds_what_it_sends():
    """Bytes of the balance fall as shards do; what rounds moves each number at least once, in and out."""
    config = with_sizes(debug(2))
    seen = rehearse(config, 2, "cuda")
    moved = {}
    for ranks, name in ((1, "zero0"), (4, "zero0"), (4, "zero0-fp8")):
        kernels = on_a_rank(seen.kernels, seen, ranks, 0, Sending.of(replace(config, ds_config=name)))
        phases = {kernel.phase for kernel in kernels}
        moved[ranks, name] = {p: sum(kernel.bytes for kernel in kernels if kernel.phase == p) for p in phases}
    alone, exact, rounded = moved.values()
    assert exact["balance"] == pytest.approx(alone["balance"] / 4, rel=0.01)
    assert exact["step"] == alone["step"], "every rank steps all parameters"
    assert "rounding" not in alone and exact.get("rounding", 0) == 0
    reduced = sum(size * len(tasks) for size, tasks in zip(seen.sizes, seen.reach, strict=True))
    least = 2 * reduced + (1 + 4) * seen.parameters
    assert least < rounded["rounding"] < 3 * least


def test_cards_are_those_of_the_page_and_physical():
    assert set(cards()) == {"rtx3090", "rtx4090", "a100-40", "a100-80", "h100", "h200", "l40s"}
    for known in cards().values():
        assert known.bf16 >= known.tf32 >= known.fp32 or known.name.startswith(("rtx", "a100"))
        assert 20e9 < known.memory < 200e9
        assert known.source


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--gpu rtx309", "unknown --gpu 'rtx309'; did you mean 'rtx3090'? choose from rtx3090, rtx4090, a100-40"),
        ("--gpu h100 --gpus 3 -- --preset debug", "loader.batch_size=4 does not divide by 3 processes"),
        ("--gpu h100 --interconnect infiniband", "unknown --interconnect 'infiniband'"),
        ("--gpu l40s --gpus 2 --interconnect nvlink", "has no NVLink between 2 cards; take pcie or ethernet"),
        ("--gpu h100 --gpus 16 --batch-size 1 --interconnect pcie", "16 GPUs are 2 machines of 8; take ethernet"),
        ("--gpu h100 --epoch 1x8/1", "has no batch of 8 windows of 16 frames"),
        ("--gpu h100 --price -1", "must be a number of at least 0, not '-1'"),
        ("--gpu h100 -- --model.latent-dims 3", "unknown option --model.latent_dims, did you mean"),
        ("--gpu h100 --gpus 2 --ds_config zero9", "no such file"),
        (
            "--gpu h100 --batch-size 8 -- --loader.batch-size=12",
            "--batch-size and --loader.batch-size=12 after -- set the same; give one of them",
        ),
        ("--gpu h100 --preset small -- --preset debug", "--preset and --preset after -- set the same"),
    ],
)
def test_mistakes_are_one_line(arguments, said, capsys):
    assert main(["plan", *arguments.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_the_verb_prints_a_plan_without_a_gpu(capsys):
    options = "--gpu rtx3090 --gpus 2 --batch-size 2 --seq-len 4 --price 0.3 --ds_config zero2 -- --preset debug"
    assert main(["plan", *options.split()]) == 0
    said = capsys.readouterr().out
    assert said.startswith("predicted, not measured: 2 x NVIDIA RTX 3090")
    assert "ZeRO-2" in said.splitlines()[0]
    for word in ("forward", "network", "epoch", "cost", "memory", "at most", "take stage 0", "disk", "assumed"):
        assert word in said
