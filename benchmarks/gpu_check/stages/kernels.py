"""Each kernel against the eager and the compiled reference."""

from gpu_check.worker import Emit, Skip


def run(emit: Emit, device: str) -> None:
    """Emit the rows of `benchmarks/test_bench_kernels.py`, one a kernel and shape."""
    import test_bench_kernels

    if not hasattr(test_bench_kernels, "rows"):
        raise Skip("benchmarks/test_bench_kernels.py has no function rows")
    for row in test_bench_kernels.rows():
        emit(
            {"row": f"{row['kernel']} {row['shape']}", **{k: v for k, v in row.items() if k not in ("kernel", "shape")}}
        )
