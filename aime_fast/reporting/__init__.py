"""Metrics, progress and pictures of a run."""
