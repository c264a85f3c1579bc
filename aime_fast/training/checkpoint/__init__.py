"""Saving a run, and reading it back."""
