"""Windows a second of the loader that keeps all frames on the device, beside those copied from the host."""

import time

from gpu_check.worker import Emit

SECONDS = 1.5


def run(emit: Emit, device: str) -> None:
    """Emit a row for each loader and batch size, on the recorded sample."""
    import torch

    from aime_fast.config import LoaderConfig
    from aime_fast.data.backends import open_backend
    from aime_fast.training.prefetcher import on_device

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for kind in ("resident", "memory"):
        for batch_size in (8, 64):
            config = LoaderConfig(batch_size=batch_size, sequence_length=16)
            backend = open_backend(kind, None, config)
            for step in range(5):
                on_device(backend.batch(step), torch.device(device))
            wait()
            started, done = time.perf_counter(), 0
            while time.perf_counter() - started < SECONDS:
                for _ in range(10):
                    batch = on_device(backend.batch(done), torch.device(device))
                    done += 1
                wait()
            took = time.perf_counter() - started
            windows = done * batch_size / took
            bytes_read = batch.observations.nbytes * done / took
            figures = {"windows_per_s": windows, "frames_per_s": 16 * windows, "gb_per_s": bytes_read / 1e9}
            emit({"row": f"{kind} B={batch_size} T=16", **figures})
