"""The parts of a run, built from its configuration."""

from contextlib import ExitStack
from pathlib import Path

import torch

from aime_fast.balancing.balancer import Balancer
from aime_fast.config import TrainConfig
from aime_fast.config.options import with_data_sizes
from aime_fast.data.backends import open_backend, open_validation
from aime_fast.data.backends.backend import training_device
from aime_fast.data.identity import identify
from aime_fast.errors import UserError
from aime_fast.kernel_mode import check_kernel_mode
from aime_fast.model.world_model import DPGMMVariationalRecurrentAutoencoder
from aime_fast.tasks.aggregator import LossAggregator
from aime_fast.tasks.registry import check_data, make_tasks
from aime_fast.training.checkpoint.checkpoint import Checkpoints
from aime_fast.training.checkpoint.finding import read_state
from aime_fast.training.checkpoint.settings import check_settings, comparable
from aime_fast.training.checkpoint.state import Progress, RunState
from aime_fast.training.compile.compilation import Compilation, cache_folder, wanted
from aime_fast.training.compile.cuda_graph import CudaRecorder
from aime_fast.training.compile.graph_capture import CapturedStep
from aime_fast.training.engines.host_group import HostGroup
from aime_fast.training.engines.open_engine import open_engine
from aime_fast.training.reach import tasks_reaching
from aime_fast.training.reporter import check_logging
from aime_fast.training.run import folder as run_folder
from aime_fast.training.run.device import memory_ended
from aime_fast.training.run.room import refuse_too_large
from aime_fast.training.schedules import Schedules
from aime_fast.training.step import TrainingStep


class Components:
    """Data, model, engine, tasks, balancer, step, checkpoints and progress of one run.

    Raises:
        UserError: the configuration does not fit the data, the folder or the checkpoint. Nothing has been written.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.notes: list[str] = []
        """Messages from before the log is open."""
        self._closing = ExitStack()
        try:
            self._open(config)
        except BaseException as error:
            self.close()  # leave no process group behind
            if memory_ended(error):
                raise UserError(
                    f"out of GPU memory before the first step ({error}); keep frames off the GPU with --backend "
                    "memory, or take a smaller --preset"
                ) from error
            raise

    def _open(self, config: TrainConfig) -> None:
        check_kernel_mode()
        check_logging(config.logging)
        if config.threads:
            torch.set_num_threads(config.threads)
        tasks = make_tasks(config.tasks)
        reading = (config.seed, config.on_bad_sample, config.actions)
        self.backend = open_backend(config.backend, config.data, config.loader, "train", *reading)
        self.validation_backend = open_validation(config.backend, config.data, config.loader, *reading)
        if self.validation_backend is None:
            self.notes.append(
                "no held-out episode is as long as a window: training runs without validation and figures; record more"
            )
        data, source = self.backend, config.data or "the sample"
        self.notes += data.notes
        self.config = config = with_data_sizes(config, data.action_dim, data.image_size, source)
        check_data(tasks, data.has_rewards, source)
        windows, frames = data.sampler.valid_windows, config.loader.sequence_length
        if config.loader.batch_size > windows:
            raise UserError(
                f"loader.batch_size is {config.loader.batch_size}, but {source} has {windows} windows of {frames} "
                f"frames to train on; lower --loader.batch-size to {windows} or less"
            )
        self.data = identify(config.data, data)
        if training_device().type == "cpu":
            refuse_too_large(config)
        self.schedules = Schedules(config, self.backend.steps_per_epoch)

        torch.manual_seed(config.seed)  # decides the initial weights
        self.model = model = DPGMMVariationalRecurrentAutoencoder.from_config(config.model)
        model.add_heads(tasks)
        survey = self.backend.survey()
        model.prepare(survey.mean_frame, survey.frames)
        self.notes += survey.limits
        if config.loader.sequence_length == 1:
            self.notes.append("windows have one frame: what comes next can't be learnt; raise --loader.sequence-length")
        self.parameter_count = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self.aggregator = LossAggregator(config.losses, tasks)
        self.engine = open_engine(model, config, lambda: tasks_reaching(model, self.aggregator))
        self._closing.callback(self.engine.close)
        self.hosts = HostGroup(self.engine.rank, self.engine.world_size)
        self.balancer = Balancer(config.balancing, self.engine.layout, self.engine.parameter_names, config.tasks)
        step = TrainingStep(self.engine, self.balancer, self.aggregator, self.backend, config)
        self.compilation = self._compile()
        self.capture = self._capture(step)
        self.step: TrainingStep | CapturedStep = self.capture or step

        self.progress = Progress()
        self.state = RunState(config, self.data, self.engine, self.balancer, self.progress, step.memory)
        self.folder = self.hosts.first(lambda: run_folder.choose(config, self.notes.append))
        self.checkpoints = Checkpoints(self.folder.checkpoints, self.hosts, config.keep_checkpoints)
        self._closing.callback(self.checkpoints.close)
        if self.folder.checkpoint is not None:
            self._resume(self.folder.checkpoint)
            step.refill(self.progress.step)

    def _compile(self) -> Compilation | None:
        """Mark the step for compilation if that is wanted; the first step compiles it."""
        if not wanted(self.config.compile, self.engine.device):
            return None
        modules = {name or "model": module for name, module in self.model.named_modules()}
        tasks = {f"task {task.name}": task for task in self.aggregator.tasks}
        balancing = {"balancer": self.balancer, "layout": self.balancer.layout}
        compilation = Compilation({**modules, **tasks, **balancing}, self.engine.device)
        self._closing.callback(compilation.close)
        self.notes.append(
            f"the first step compiles {compilation.regions} regions: minutes, or seconds if {cache_folder()} has them"
        )
        return compilation

    def _capture(self, step: TrainingStep) -> CapturedStep | None:
        """The step as a CUDA graph, where it is wanted and can be one; a note says why not on a GPU."""
        choice, obstacle = self.config.cuda_graph, self.engine.capture_obstacle
        if choice == "on" and obstacle:
            raise UserError(f"--cuda-graph on: {obstacle}; use --cuda-graph auto")
        if choice == "off" or obstacle:
            if choice == "auto" and obstacle and self.engine.device.type == "cuda":
                self.notes.append(f"the step runs as written, not as a CUDA graph: {obstacle}")
            return None
        captured = CapturedStep(step, CudaRecorder(self.engine.device), self.hosts, choice == "on")
        self._closing.callback(captured.close)
        return captured

    def _resume(self, checkpoint: Path) -> None:
        saved, now = comparable(read_state(checkpoint), self.state.shared())
        home = str(checkpoint.parent.parent)
        changed = self.hosts.first(lambda: check_settings(saved, now, self.config.override, home))
        if changed:
            self.notes.append(f"settings changed since the checkpoint: {changed}")
        self.checkpoints.load(checkpoint, self.state)

    def close(self) -> None:
        """End the thread that writes checkpoints, and leave the process group if the engine opened one."""
        self._closing.close()
