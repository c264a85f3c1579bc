"""Saves a run and restores it."""
