"""Figures of a run, drawn from its rows and its snapshot: one function a figure, one style."""
