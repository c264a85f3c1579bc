"""Each kernel against the eager and the compiled reference."""

from gpu_check.worker import Emit, Skip


def run(emit: Emit, device: str) -> None:
    """Emit the rows of `benchmarks/test_bench_kernels.py`, one a kernel and shape."""
    import test_bench_kernels as bench

    if not hasattr(bench, "each_row"):
        raise Skip("benchmarks/test_bench_kernels.py has no function each_row")
    on_card = device == "cuda"
    for row in bench.each_row(device, small=not on_card, compiled=on_card, rounds=50 if on_card else 3):
        emit({"row": f"{row.pop('kernel')} {row.pop('shape')}", **row})
