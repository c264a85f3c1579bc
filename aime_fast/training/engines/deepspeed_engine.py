"""The engine over DeepSpeed: ZeRO 0 to 3 at any number of processes."""

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from aime_fast.balancing.layouts.flat import FlatLayout
from aime_fast.balancing.layouts.partitions import (
    OptimizerPartition,
    ParameterPartition,
    Partition,
    WholePartition,
    divide,
)
from aime_fast.balancing.layouts.reach import Reach
from aime_fast.balancing.layouts.rounded import BLOCK, CODE
from aime_fast.config import TrainConfig
from aime_fast.errors import UserError
from aime_fast.profiling.phases import phase
from aime_fast.training.engines.card import check_card
from aime_fast.training.engines.ds_config import EngineSettings, engine_settings
from aime_fast.training.engines.engine import Engine, M, make_optimizer, micro_batch_size, trainable
from aime_fast.training.engines.host_group import time_limit


class DeepSpeedEngine(Engine[M]):
    """DeepSpeed's partitions and optimiser step, with gradients that are reduced a task at a time.

    The forward pass goes to the module and the gradients come from `torch.autograd.grad`, so DeepSpeed's own backward,
    accumulation and clipping are not used (`balancing/layouts/flat.py` has the reason). ZeRO-0 needs nothing of
    DeepSpeed: it balances shards as the other stages do, and gathers the update. ZeRO-1 adds whole gradients up over
    micro-batches and reduces once; ZeRO-2 keeps shards only and reduces each micro-batch. ZeRO-3 also cuts the
    parameters: they are gathered at a step's first forward pass and dropped after its last backward pass.
    """

    def __init__(self, module: M, config: TrainConfig, reach: Callable[[], Reach] | None = None) -> None:
        rank, local_rank, world_size = (int(os.environ.get(key, default)) for key, default in _ENVIRONMENT.items())
        settings = engine_settings(config, world_size)
        micro_batch_size(config, world_size)
        device = _device(local_rank)
        self._opened = _join(rank, world_size, device)
        if device.type == "cpu" and not config.threads and "OMP_NUM_THREADS" not in os.environ:
            local_size = int(os.environ.get("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", "1")))
            torch.set_num_threads(max(1, torch.get_num_threads() // local_size))
        module.to(device)
        optimizer = make_optimizer(module, config.optim, device)
        reached = reach() if reach and world_size > 1 else None
        self._deepspeed, partition = _partitioned(module, optimizer, settings, rank, world_size, reached)
        self._cut = partition if isinstance(partition, ParameterPartition) else None
        self._open: AbstractContextManager[None] | None = None
        layout = FlatLayout(
            trainable(module),
            partition,
            world_size,
            reduce_each=settings.stage >= 2,
            overlap=settings.overlap,
            reach=reached,
            dtype=torch.bfloat16 if settings.bf16_reductions else torch.float32,
            update_dtype=CODE if settings.fp8_update else None,
        )
        super().__init__(module, optimizer, layout, config, device, rank, world_size, settings.bf16)

    def _fetch(self) -> None:
        if self._cut is not None and self._open is None:
            with phase("gather"):
                self._open = self._cut.gathered()
                self._open.__enter__()

    def _release(self) -> None:
        if self._open is not None:
            self._open.__exit__(None, None, None)
            self._open = None

    @property
    def capture_obstacle(self) -> str | None:
        """As in `Engine`; with ZeRO-3 nothing can be captured."""
        if self._cut is not None:
            return "ZeRO-3 gathers the parameters into new memory in every step"
        for name in ("TORCH_NCCL_BLOCKING_WAIT", "NCCL_BLOCKING_WAIT"):  # torch reads both
            if os.environ.get(name, "").lower() in ("1", "y", "yes", "t", "true"):
                return f"{name} makes the host wait for every reduction; unset it"
        return super().capture_obstacle

    @property
    def steps_from_host(self) -> bool:
        """True with ZeRO-1 and 2: DeepSpeed steps the partitions and gathers the parameters from Python."""
        return self._deepspeed is not None

    def whole(self, changed: bool = False) -> AbstractContextManager[None]:
        """The module's parameters are whole while this is open; see `Engine.whole`."""
        return super().whole(changed) if self._cut is None else self._cut.gathered(changed)

    def _step(self, finite: Tensor) -> None:
        if self._deepspeed is None:
            super()._step(finite)
            return
        # ZeRO steps this optimiser on its partitions and gathers the parameters; after a skip they are unchanged.
        self.optimizer.found_inf = (~finite).to(torch.float32)  # type: ignore[attr-defined]
        self._deepspeed.step()

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Take over the module's weights, and ZeRO's copies of them; collective."""
        super().load_weights(weights)
        if self._deepspeed is not None:
            self._deepspeed.optimizer.refresh_fp32_params()

    def barrier(self) -> None:
        """Wait until every rank is here, at most `time_limit()`."""
        if self.device.type == "cuda":
            dist.barrier(device_ids=[self.device.index])
        else:
            dist.barrier()

    def close(self) -> None:
        """Remove DeepSpeed's hooks, and leave the process group if this engine opened it."""
        import deepspeed.comm

        if self._deepspeed is not None:
            self._deepspeed.destroy()
        if self._opened and dist.is_initialized():
            # DeepSpeed remembers the group, once it has used it.
            (deepspeed.comm if deepspeed.comm.is_initialized() else dist).destroy_process_group()


_ENVIRONMENT = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise UserError(f"process {local_rank} has no GPU: this machine has {count}; use --num_gpus {count}")
    torch.cuda.set_device(local_rank)
    device = torch.device("cuda", local_rank)
    check_card(device)
    return device


def _join(rank: int, world_size: int, device: torch.device) -> bool:
    """Join the process group with a time limit; True if this call opened it."""
    # Set before DeepSpeed is imported: otherwise it chooses the device itself. A single process needs both too.
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    os.environ.setdefault("LOCAL_RANK", "0")
    # DeepSpeed 0.19 still calls collectives by the names that torch 2.13 deprecates.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
    if dist.is_initialized():
        return False
    options: dict[str, Any] = {"timeout": time_limit()}
    if device.type == "cuda":
        options["device_id"] = device
    if world_size == 1 and "MASTER_PORT" not in os.environ:
        # A single process needs no port, so any number of runs fit on one machine.
        options |= {"store": dist.HashStore(), "rank": 0, "world_size": 1}  # type: ignore[attr-defined]
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", **options)
    except dist.DistNetworkError as error:
        port = os.environ.get("MASTER_PORT")
        if rank == 0 and "EADDRINUSE" in str(error):
            raise UserError(
                f"port {port} is in use by another job; pass `deepspeed --master_port FREE_PORT ...`"
            ) from error
        raise
    return True


def _partitioned(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    settings: EngineSettings,
    rank: int,
    world_size: int,
    reach: Reach | None,
) -> tuple[Any, Partition]:
    """DeepSpeed's engine (for ZeRO-1 and 2, where it steps the optimiser) and the partition that the stage asks for."""
    if settings.stage == 0:
        # Shards of whole blocks are sent and read as they lie.
        return None, WholePartition(module, optimizer, world_size * (BLOCK if settings.fp8_update else 1), reach)
    if reach is not None:
        divide(optimizer, trainable(module), reach)
    with _starting():
        import deepspeed

        if settings.stage == 3:
            return None, ParameterPartition(module, optimizer, rank, world_size)
        # It keeps slices of the parameters. With a graph they would keep the parameters' autograd nodes alive, which
        # belong to the stream of this moment; a capture on another stream cannot wait for that one.
        with torch.no_grad():
            engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings.deepspeed)
        return engine, OptimizerPartition(engine.optimizer, trainable(module))


@contextmanager
def _starting() -> Iterator[None]:
    """Let DeepSpeed start without compiling anything, and without its log lines."""
    import deepspeed.ops

    if os.environ["DS_ACCELERATOR"] == "cpu":
        # Else DeepSpeed compiles a shared-memory collective at its first start on a CPU. That takes minutes and a
        # compiler, and a killed build leaves a lock file that hangs every later run. Nothing here uses it.
        deepspeed.ops.__compatible_ops__ = {}
    # It warns about every optimiser that it has not tested; the equality tests here do.
    logger = logging.getLogger("DeepSpeed")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
