"""What several benchmarks measure alike."""

import statistics
from contextlib import contextmanager

import torch


def peak_bytes(call):
    """The most memory that is allocated on the CPU at one time in a call, beyond what was there before."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    # Without `acc_events` torch 2.11 warns that it forgets events at the end of a cycle; here is one cycle.
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profile:
        call()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@contextmanager
def two_threads():
    """Every figure of the documents is of two, which a compiled form also depends on."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def in_turn(benchmark, forms, rounds):
    """Seconds of each of these calls by name, and their medians, after two rounds of warm-up.

    Every round makes all calls, so that all see one machine. The benchmark's timer decides what a second is.
    """
    seconds = {name: [] for name in forms}
    for round_ in range(2 + rounds):
        for name, call in forms.items():
            start = benchmark._timer()
            call()
            if round_ >= 2:
                seconds[name].append(benchmark._timer() - start)
    return seconds, {name: statistics.median(times) for name, times in seconds.items()}
