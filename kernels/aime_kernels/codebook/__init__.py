"""Codebooks: the nearest code of each vector, and how far it is."""
