"""TensorBoard: event files in the run's folder."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from aime_fast.reporting.trackers.tracker import RunIdentity


class TensorBoard:
    """Writes events into `RUN/tensorboard`."""

    def __init__(self, run: RunIdentity) -> None:
        # Slow to import.
        from torch.utils import tensorboard

        folder = run.folder / "tensorboard"
        purge = None if run.resume_step is None else run.resume_step + 1
        self._writer = tensorboard.SummaryWriter(str(folder), purge_step=purge)
        self._hook = threading.excepthook
        threading.excepthook = without_events(self._hook)
        self.where = f"tensorboard --logdir {folder}"

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One event a row: an event for each value would take ten times as long."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        row = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        self._writer._get_file_writer().add_summary(row, step)

    def picture(self, step: int, tag: str, path: Path) -> None:
        """The file as it is: decoding and encoding it again would take longer than a step on a GPU."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        with Image.open(path) as image:
            size = {"width": image.width, "height": image.height}
        picture = Summary.Image(**size, colorspace=3, encoded_image_string=path.read_bytes())
        self._writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=tag, image=picture)]), step)

    def histogram(self, step: int, tag: str, shares: np.ndarray) -> None:
        """Buckets 0 to 1, 1 to 2, ..."""
        heights = np.asarray(shares, dtype=np.float64)
        edges = np.arange(1, len(heights) + 1, dtype=np.float64)
        middles = edges - 0.5
        self._writer.add_histogram_raw(
            tag,
            min=0.0,
            max=float(len(heights)),
            num=float(heights.sum()),
            sum=float((heights * middles).sum()),
            sum_squares=float((heights * middles**2).sum()),
            bucket_limits=edges.tolist(),
            bucket_counts=heights.tolist(),
            global_step=step,
        )

    def text(self, step: int, tag: str, text: str) -> None:
        """Shown under Text."""
        self._writer.add_text(tag, text, step)

    def close(self) -> None:
        """Flush and close the events."""
        threading.excepthook = self._hook
        self._writer.close()


def without_events(hook: Callable[[threading.ExceptHookArgs], object]) -> Callable[[threading.ExceptHookArgs], None]:
    """`hook`, but silent for a failed write of TensorBoard's thread: the next event reports it to its caller."""

    def quieter(failed: threading.ExceptHookArgs) -> None:
        of_tensorboard = type(failed.thread).__module__.partition(".")[0] == "tensorboard"
        if not (of_tensorboard and isinstance(failed.exc_value, OSError)):
            hook(failed)

    return quieter
