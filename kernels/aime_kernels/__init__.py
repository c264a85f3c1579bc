"""Numerical operators of AIME: plain PyTorch references behind public functions."""
