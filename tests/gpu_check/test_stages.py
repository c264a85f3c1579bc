"""What the stages compute from what they measure, and that they run on a CPU."""

import subprocess
import sys
import time
import warnings
from collections import Counter
from types import SimpleNamespace

import pytest
import test_bench_kernels
import torch
from gpu_check.processes import STARTED
from gpu_check.stages import agree, kernels, launched, machine, resident, step, suite, trace
from gpu_check.worker import Failure, _plain


def test_overlapping_kernels_are_busy_once():
    assert trace.union([]) == 0.0
    assert trace.union([(5.0, 6.0), (0.0, 2.0), (1.0, 3.0), (0.5, 1.0)]) == 4.0


def test_ranges_and_host_events_are_no_kernels():
    """A range around kernels lasts as long as they do; counting it would double the busy time."""
    events = [
        {"ph": "X", "cat": "kernel", "name": "gemm", "ts": 10.0, "dur": 4.0},
        {"ph": "X", "cat": "kernel", "name": "gemm", "ts": 20.0, "dur": 2.0},
        {"ph": "X", "cat": "gpu_memcpy", "name": "copy", "ts": 13.0, "dur": 3.0},
        {"ph": "X", "cat": "gpu_user_annotation", "name": "forward", "ts": 10.0, "dur": 90.0},
        {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "ts": 0.0, "dur": 50.0},
        {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": 1.0, "dur": 5.0},
        {"ph": "i", "cat": "kernel", "name": "mark", "ts": 1.0},
        {"ph": "M", "name": "process_name"},
    ]
    found = trace.kernels_in(events)
    assert found.names == ["gemm", "gemm"] and found.copies == 1
    assert found.busy == 8.0
    assert found.largest(steps=2) == [["gemm", 1.0, 0.003], ["copy", 0.0, 0.0015]]


def test_kernels_are_counted_by_function():
    """Names as torch 2.11 gave them on an H200, shortened."""
    names = [
        *["void at::native::reduce_kernel<128, 4, at::native::ReduceOp<float, at::native::func_wrapper_t>>(int)"] * 3,
        "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<at::native::(anonymous namespace)::A>(int)",
        "void cutlass::Kernel2<cutlass_80_tensorop_s1688gemm_64x64_32x6_nn_align4>(cutlass_80_tensorop)",
        "fmha_cutlassB_f32_aligned_64x64_k64_sm80(PyTorchMemEffAttention::AttentionBackwardKernel<c>)",
        "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<double>>(int)",
        "nearest_codes_kernel",
        "(odd)",
    ]
    found = trace.Kernels(names, 0, [], Counter()).families(steps=2)
    assert next(iter(found.items())) == ("reduce_kernel", 2.0)
    assert set(found) == {
        *("reduce_kernel", "multi_tensor_apply_kernel", "Kernel2", "fmha_cutlassB_f32_aligned_64x64_k64_sm80"),
        *("nearest_codes_kernel", "(odd)"),
    }
    assert sum(found.values()) == len(names) / 2


def test_a_profile_of_the_cpu_has_no_kernels(monkeypatch):
    monkeypatch.setattr(trace.torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(trace, "ACTIVITY", trace.ProfilerActivity.CPU)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = trace.kernels_of(lambda: torch.ones(3) + 1)
    assert found.names == [] and found.busy == 0.0
    assert not [warning for warning in caught if "clears events" in str(warning.message)]


def test_differences_are_relative_to_the_largest_value():
    one = {"elbo": [10.0, -20.0], "tiny": [1e-6, 0.0], "zero": [0.0, 0.0], "rgb_cosine_a_b": [1.0, 1.0]}
    other = {"elbo": [10.0, -19.0], "tiny": [2e-6, 0.0], "zero": [0.0, float("nan")], "rgb_cosine_a_b": [0.0, 0.0]}
    found = agree.differences(one, other)
    assert found == {
        "elbo": (0.0, pytest.approx(0.05)),
        "tiny": (pytest.approx(1e-4),) * 2,
        "zero": (0.0, float("inf")),
    }


def test_numbers_without_a_form_in_json_become_text():
    assert _plain({"a": [float("nan"), 1.23456789], "b": (float("-inf"),)}) == {"a": ["nan", 1.2346], "b": ["-inf"]}


def report_of(test, **kwargs):
    empty = dict(nodeid=test, when="call", failed=False, skipped=False, longrepr=None)
    return SimpleNamespace(**empty | kwargs)


def test_failures_are_told_at_once_and_counted():
    rows = []
    outcomes = suite.Outcomes(rows.append)
    crash = SimpleNamespace(path=suite.ROOT / "tests" / "test_a.py", lineno=7, message="AssertionError: 1 == 2\nmore")
    outcomes.pytest_runtest_logreport(report_of("a", failed=True, longrepr=SimpleNamespace(reprcrash=crash)))
    outcomes.pytest_runtest_logreport(report_of("b"))
    outcomes.pytest_runtest_logreport(report_of("c", when="setup", skipped=True))
    outcomes.pytest_runtest_logreport(report_of("d", when="setup", failed=True, longrepr="x\nE   no fixture\n"))
    outcomes.pytest_collectreport(report_of("e", failed=True, longrepr="No module named 'scipy'"))
    assert [(row["row"], row["outcome"], row["first_line"]) for row in rows] == [
        ("a", "failed", "tests/test_a.py:7: AssertionError: 1 == 2"),
        ("d", "error", "E   no fixture"),
        ("e", "error", "No module named 'scipy'"),
    ]
    outcomes.count()
    assert {key: rows[-1][key] for key in outcomes.counts} == {"passed": 1, "failed": 1, "error": 2, "skipped": 1}


def test_the_gpu_tests_of_the_project_are_found():
    assert suite.files()[-1].endswith("tests/kernels/parity")
    assert any(path.endswith("test_graph_capture.py") for path in suite.files())


WRITER = """
import sys
file = open(sys.argv[1], "w", buffering=1)
file.write('{"step": 1}\\n{"st')
file.flush()
sys.stdin.read(1)
file.write('ep": 2}\\n{"step": 3')
"""


def test_a_log_is_followed_while_it_is_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdin=subprocess.PIPE) as process:
        rows = launched._follow(path, process)
        assert next(rows) == {"step": 1}
        assert process.poll() is None
        process.stdin.write(b"x")
        process.stdin.flush()
        assert list(rows) == [{"step": 2}]


def test_rates_are_positive():
    assert machine.copied_bytes_a_second("cpu") > 0
    assert machine.product_flops("cpu", torch.float32, tf32=False) > 0


def test_the_loaders_are_timed(monkeypatch):
    monkeypatch.setattr(resident, "SECONDS", 0.01)
    rows = []
    resident.run(rows.append, "cpu")
    assert [row["row"].split()[0] for row in rows] == ["resident", "resident", "memory", "memory"]
    assert all(row["frames_per_s"] == 16 * row["windows_per_s"] > 0 for row in rows)


def test_a_step_is_measured_on_a_cpu(monkeypatch):
    monkeypatch.setenv(STARTED, repr(time.time()))
    monkeypatch.setattr(step, "SECONDS", 0.1)
    rows = []
    step.run(rows.append, "cpu", "debug", 1, 2, "fp32", "as written")
    found = {key: value for row in rows for key, value in row.items()}
    assert 0 < found["import_s"] < found["first_step_s"] < found["ready_s"]
    assert 0 < found["ms_min"] <= found["ms"] <= found["ms_max"]
    assert found["host_ms"] <= found["ms_max"]
    assert found["frames_per_s"] == pytest.approx(2 / (found["pipelined_ms"] / 1000))
    assert abs(found["total_elbo"]) < 1e3


def test_what_a_card_adds_to_a_step(monkeypatch):
    """Memory and kernels of a card that is made up: two kernels of half a millisecond in each step."""
    monkeypatch.setenv(STARTED, repr(time.time()))
    monkeypatch.setattr(step, "SECONDS", 0.1)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (60 * 10**9, 80 * 10**9))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 10**9)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 2 * 10**9)

    def kernels_of(call):
        count = 2 * len(call())
        intervals = [(1000.0 * n, 1000.0 * n + 500.0) for n in range(count)]
        return trace.Kernels(["gemm"] * count, 3 * count, intervals, Counter(gemm=500.0 * count))

    monkeypatch.setattr(trace, "kernels_of", kernels_of)
    rows = []
    step.run(rows.append, "cuda", "debug", 1, 2, "tf32", "as written")
    found = {key: value for row in rows for key, value in row.items()}
    assert [found[name] for name in ("allocated_gb", "reserved_gb", "card_gb")] == [1.0, 2.0, 20.0]
    assert (found["kernels"], found["copies"]) == (2, 6) and found["busy_ms"] == pytest.approx(1.0)
    assert found["families"] == {"gemm": 2.0}
    assert found["busy_percent"] == pytest.approx(100 / found["pipelined_ms"])
    assert found["largest"] == [["gemm", 2.0, 1.0]]


def test_a_kernel_that_fails_loses_no_other(monkeypatch):
    measured = test_bench_kernels.row_of

    def broken(case, *arguments, **options):
        if case.kernel == "rgb_gram":
            raise RuntimeError("illegal memory access\nmore")
        return measured(case, *arguments, **options)

    monkeypatch.setattr(test_bench_kernels, "row_of", broken)
    rows = []
    with pytest.raises(Failure, match="2 failed: rgb_gram"):
        kernels.run(rows.append, "cpu")
    errors = [row.get("error") for row in rows]
    assert errors.count("RuntimeError: illegal memory access") == 2
    assert sum(error is None for error in errors) >= 8
    assert all(row["eager_ms"] > 0 for row in rows if "error" not in row)
