"""Distances that need a network: LPIPS, FVD, and a Frechet distance in the features of a state probe."""
