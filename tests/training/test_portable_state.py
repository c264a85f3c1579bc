"""State stored by parameter name is read into any other layout: every world size, stage and padding."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from aime_fast.balancing.layouts import flat as flat_rows
from aime_fast.balancing.layouts.cut import Cut
from aime_fast.balancing.layouts.flat import FlatLayout
from aime_fast.balancing.layouts.partitions import FlatGroup, WholePartition
from aime_fast.errors import UserError
from aime_fast.training.checkpoint.portable_state import StoredState, portable_state
from aime_fast.training.engines.engine import Engine

SHAPES = {"wide": (5, 7), "tall": (11, 2), "bias": (7,), "scale": (1,), "alone": ()}


class Params(nn.Module):
    """Parameters of many shapes, one of them laid out with channels last."""

    def __init__(self):
        super().__init__()
        for name, shape in SHAPES.items():
            setattr(self, name, nn.Parameter(torch.zeros(shape)))
        self.filters = nn.Parameter(torch.zeros(2, 3, 2, 2).contiguous(memory_format=torch.channels_last))


def one_rank(rank, world_size, stage, align):
    """What `portable_state` needs: an engine of rank `rank` of `world_size`, cut as under ZeRO 0, 2 or 3, or plain."""
    module = Params()
    parameters = list(module.parameters())
    groups = []
    for chosen in ([i for i, p in enumerate(parameters) if (p.ndim >= 2) is wide] for wide in (True, False)):
        sizes = [parameters[i].numel() for i in chosen]
        cuts = world_size if stage == 3 else 1
        offsets = torch.tensor([0] + [-(-size // cuts) for size in sizes]).cumsum(0).tolist()
        numel = offsets[-1] * cuts if stage == 3 else -(-offsets[-1] // (align * world_size)) * align * world_size
        groups.append(FlatGroup(tuple(chosen), tuple(offsets[:-1]), tuple(sizes), numel, cuts))
    engine = SimpleNamespace(module=module, rank=rank, device="cpu", sharded=stage in (2, 3) and world_size > 1)
    engine.parameter_names = Engine.parameter_names.fget(engine)
    if stage == "plain":
        optimizer = torch.optim.AdamW(parameters)
        partition = WholePartition(module, optimizer)
        rows, stepped = FlatLayout(parameters, partition), optimizer.param_groups[0]["params"]
    elif stage:
        rows = FlatLayout(parameters, SimpleNamespace(groups=groups, whole=False), world_size)
        stepped = [nn.Parameter(torch.zeros(cut.shape)) for cut in rows.cuts()]
    else:
        whole = [Cut.whole(index, parameter) for index, parameter in enumerate(parameters)]
        rows, stepped = SimpleNamespace(cuts=lambda: whole), parameters
    engine.optimizer_cuts = lambda: list(zip(stepped, rows.cuts(), strict=True))
    engine.optimizer = torch.optim.AdamW(stepped)
    engine.row_cuts = rows.cuts
    return engine


def numbers(name, kind):
    """Known numbers for each entry of a parameter, other ones for each kind of state."""
    shape = dict(Params().named_parameters())[name].shape
    order = sorted(dict(Params().named_parameters()))
    start = 1000.0 * order.index(name) + {"exp_avg": 0.25, "exp_avg_sq": 0.5, "direction": 0.75}[kind]
    return torch.arange(shape.numel(), dtype=torch.float32).view(shape) + start


def filled(engine, cut, kind):
    """The tensor that this cut of the known numbers is."""
    flat = torch.zeros(cut.shape).flatten()
    for piece in cut.pieces:
        whole = numbers(engine.parameter_names[piece.index], kind).flatten()
        flat[piece.at : piece.at + piece.numel] = whole[piece.start : piece.start + piece.numel]
    return flat.view(cut.shape)


def write(folder, monkeypatch, world_size, stage, align):
    """Every rank's file of a run in this layout, after three steps."""
    files = []
    for rank in range(world_size):
        monkeypatch.setattr(flat_rows.dist, "get_rank", lambda rank=rank: rank)
        engine = one_rank(rank, world_size, stage, align)
        for parameter, cut in engine.optimizer_cuts():
            state = {kind: filled(engine, cut, kind).reshape(parameter.shape) for kind in ("exp_avg", "exp_avg_sq")}
            engine.optimizer.state[parameter] = state | {"step": torch.tensor(3.0)}
        named = portable_state(engine, [filled(engine, cut, "direction") for cut in engine.row_cuts()])
        if named:
            save_file({key: value.clone() for key, value in named.items()}, folder / f"{rank}.safetensors")
            files.append(folder / f"{rank}.safetensors")
    return files


layouts = st.one_of(
    st.just((1, 0)), st.just((1, "plain")), st.tuples(st.sampled_from([1, 2, 3, 4, 8]), st.sampled_from([2, 3]))
)


@given(written=layouts, read=layouts, align=st.sampled_from([1, 2, 8]))
def test_any_layout_reads_any_other(written, read, align, tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        stored = StoredState(write(tmp_path_factory.mktemp("layout"), monkeypatch, *written, align))
        for rank in range(read[0]):
            monkeypatch.setattr(flat_rows.dist, "get_rank", lambda rank=rank: rank)
            engine = one_rank(rank, *read, 4)
            direction = stored.restore(engine)
            for tensor, cut in zip(direction, engine.row_cuts(), strict=True):
                expected = filled(engine, cut, "direction")
                assert torch.equal(tensor, expected) if tensor is not None else not expected.any()
            for parameter, cut in engine.optimizer_cuts():
                state = engine.optimizer.state[parameter]
                assert state["step"] == 3
                for kind in ("exp_avg", "exp_avg_sq"):
                    assert torch.equal(state[kind], filled(engine, cut, kind).view(parameter.shape)), kind
                    assert state[kind].stride() == parameter.stride(), "the fused step reads memory, not indices"


def test_whole_copies_are_written_once(tmp_path, monkeypatch):
    """Without partitions every rank holds all of it, and rank 0 writes it."""
    engine = one_rank(1, 2, 0, 1)
    for parameter, _ in engine.optimizer_cuts():
        engine.optimizer.state[parameter] = {"exp_avg": torch.zeros_like(parameter)}
    assert portable_state(engine, None) == {}


def test_missing_entries_are_named(tmp_path, monkeypatch):
    files = write(tmp_path, monkeypatch, 2, 2, 1)
    with pytest.raises(UserError, match=r"entries of .*; use an earlier one"):
        StoredState(files[:1]).restore(one_rank(0, 1, 0, 1))


def test_a_run_without_moments_has_none(tmp_path):
    assert StoredState([]).restore(one_rank(0, 1, 0, 1)) == [None] * 6
