"""Injects faults into short trainings and says which are named: `python -m benchmarks.faults`."""
