"""What a run says about its GPU, and when the memory of that ends; a fake GPU stands in for one."""

import re
import shlex
from types import SimpleNamespace

import pytest
import torch
from recording import tiny_options, write_recording

from aime_fast import train
from aime_fast.doctor import probes
from aime_fast.doctor.checks import warning
from aime_fast.errors import UserError
from aime_fast.training import components, loop
from aime_fast.training.engines.card import check_card, use_precision
from aime_fast.training.run import device as run_device
from aime_fast.training.run.device import describe, memory_ended, why_no_gpu
from aime_fast.training.step import TrainingStep
from aime_fast.training.trainer import DMCVBTrainer

GPU = torch.device("cuda", 0)
MEMORY = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.25 GiB is "
    "free. Including non-PyTorch memory, this process has 77.80 GiB memory in use."
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_recording(tmp_path_factory.mktemp("data") / "recording.pt")


@pytest.fixture
def card(monkeypatch):
    """A function that puts a GPU with these properties into this machine."""

    def put(capability=(9, 0), free=79.0, reserved=0.5, obstacle=None, built=("sm_80", "sm_90")):
        properties = SimpleNamespace(name="NVIDIA H100", total_memory=80_000_000_000)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: properties.name)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * 1e9, 80e9))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: reserved * 1e9)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(built))
        monkeypatch.setattr(run_device, "obstacle_of_device", lambda device: obstacle)

    return put


@pytest.fixture
def switches():
    """Puts the process's switches back."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield lambda: (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_one_line_names_card_precision_step_and_kernels(card):
    card()
    lines = describe(GPU, "TF32 products", "step as a CUDA graph after 3 steps")
    assert lines == ["NVIDIA H100, 80 GB: TF32 products, step as a CUDA graph after 3 steps, Triton kernels"]


def test_missing_kernels_are_said_with_their_reason(card, monkeypatch):
    card(obstacle="Triton cannot be imported (no module)")
    assert describe(GPU, "x", "y")[0].endswith("no Triton kernels (Triton cannot be imported (no module))")
    monkeypatch.setenv("AIME_KERNELS", "reference")
    assert describe(GPU, "x", "y")[0].endswith("no Triton kernels (AIME_KERNELS=reference)")


def test_a_busy_card_is_said_with_its_numbers(card):
    card(free=30.0, reserved=10.0)
    _, line = describe(GPU, "x", "y")
    assert "other programs hold 40.0 of its 80.0 GB, 30.0 GB are free" in line
    card(free=30.0, reserved=49.0)
    assert len(describe(GPU, "x", "y")) == 1, "what this process holds is not another program's"


@pytest.mark.parametrize(
    ("tf32", "bf16", "capability", "words", "set_to"),
    [
        (True, False, (9, 0), "TF32 products", True),
        (False, False, (9, 0), "float32 products", False),
        (True, True, (9, 0), "bf16 products", True),
        (True, False, (7, 5), "float32 products (no tensor cores for TF32)", True),
        (True, True, (7, 5), "bf16 products (no tensor cores for them: fp32 is faster)", True),
    ],
)
@pytest.mark.filterwarnings("default")
def test_precision_of_products(card, switches, tf32, bf16, capability, words, set_to):
    card(capability)
    assert use_precision(GPU, tf32, bf16) == words
    assert switches() == (set_to, set_to)


def test_a_run_on_the_cpu_leaves_the_switches_alone(switches):
    before = switches()
    assert use_precision(torch.device("cpu"), not before[0], False) == "float32 products"
    assert switches() == before


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        ((9, 0), ("sm_80", "sm_90"), True),
        ((8, 9), ("sm_75", "sm_80", "sm_90"), True),
        ((12, 1), ("sm_90", "sm_120"), True),
        ((12, 1), ("sm_90", "compute_90"), True),
        ((9, 0), ("sm_80", "sm_90a"), True),
        ((6, 1), ("sm_75", "sm_80", "compute_80"), False),
        ((7, 0), ("sm_75", "sm_80"), False),
        ((10, 0), ("sm_80", "sm_90"), False),
        ((9, 0), (), True),
    ],
)
def test_a_card_that_torch_has_no_code_for(card, capability, built, runs):
    card(capability, built=built)
    if runs:
        check_card(GPU)
    else:
        with pytest.raises(UserError, match=r"NVIDIA H100 has compute capability .* is built for sm_.*install a torch"):
            check_card(GPU)


def test_a_cpu_that_nobody_asked_for_is_said(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(probes, "driver_version", lambda: None)
    assert why_no_gpu() is None
    monkeypatch.setattr(probes, "driver_version", lambda: "12.4")
    monkeypatch.setattr(probes, "cuda", lambda: warning("driver for CUDA 12.4, but torch finds no card", "update it"))
    line = describe(torch.device("cpu"), "x", "y")[1]
    assert line.startswith("training on the CPU, although this machine has an NVIDIA driver: driver for CUDA 12.4")
    assert line.endswith("update it")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert why_no_gpu() is None, "the user hid the cards"


@pytest.mark.parametrize(
    ("error", "ended"),
    [
        (torch.OutOfMemoryError(MEMORY), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA driver error: out of memory"), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (RuntimeError("NCCL error: unhandled cuda error. Last error: Cuda failure 2 'out of memory'"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: not enough memory"), False),
        (ValueError("a shape"), False),
    ],
)
def test_which_errors_mean_that_memory_ended(error, ended):
    assert memory_ended(error) is ended


def run_out(monkeypatch, where, name, after=0):
    """Make a function raise torch's error from its call number `after` on."""
    calls, function = [], getattr(where, name)

    def failing(*arguments, **options):
        calls.append(1)
        if len(calls) > after:
            raise torch.OutOfMemoryError(MEMORY)
        return function(*arguments, **options)

    monkeypatch.setattr(where, name, failing)


def flags(options):
    """Options of Python as those of the command line."""
    for name, value in options.items():
        if isinstance(value, dict):
            yield from flags({f"{name}.{key}": inner for key, inner in value.items()})
        else:
            yield from (f"--{name}", str(value).lower() if isinstance(value, bool) else str(value))


def test_a_step_without_memory_says_what_fits_and_how_to_go_on(data, tmp_path, monkeypatch, capsys):
    """And what it says to do works."""
    options = [*flags(tiny_options(data, tmp_path / "run", checkpoint_every=2, compile="off"))]
    with monkeypatch.context() as patched:
        run_out(patched, TrainingStep, "compute", after=3)
        assert train.main(options) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert "out of GPU memory in step 4 (2.50 GiB more needed, 1.25 GiB of 79.10 GiB free)" in line
    assert "a micro-batch of 1 instead of 2 windows takes about 1/2 of the memory" in line
    assert "--optim.accumulation 2 keeps the batch of 2, and --loader.batch-size 1 in a new run" in line
    assert "--optim.precision bf16" in line
    assert "--cuda-graph off" in line
    again = re.search(r"go on from step-00000003 with (.*)", line)[1]
    assert train.main(shlex.split(again)) == 0


def test_without_a_checkpoint_there_is_none_to_name(data, tmp_path, monkeypatch):
    run_out(monkeypatch, TrainingStep, "compute")
    trainer = DMCVBTrainer(**tiny_options(data, tmp_path / "run", optim={"accumulation": 2}))
    with pytest.raises(UserError, match=r"in step 1 .* one window at a time is too much.* no checkpoint had been writ"):
        trainer.fit()


def test_a_validation_without_memory_names_what_it_needs(data, tmp_path, monkeypatch):
    run_out(monkeypatch, loop, "validate")
    trainer = DMCVBTrainer(**tiny_options(data, tmp_path / "run", checkpoint_every=1))
    with pytest.raises(UserError, match=r"in validation .* takes 2 windows at a time.* go on from step-00000002"):
        trainer.fit()


def test_a_start_without_memory(data, tmp_path, monkeypatch):
    run_out(monkeypatch, components, "open_engine")
    with pytest.raises(UserError, match=r"before the first step .*--backend memory, or take a smaller --preset"):
        DMCVBTrainer(**tiny_options(data, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_another_error_of_a_step_stays_what_it_is(data, tmp_path, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("a bug")

    monkeypatch.setattr(TrainingStep, "compute", broken)
    with pytest.raises(RuntimeError, match=r"a bug"):
        DMCVBTrainer(**tiny_options(data, tmp_path / "run")).fit()
