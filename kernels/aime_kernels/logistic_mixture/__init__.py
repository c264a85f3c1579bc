"""Mixture of discretised logistics over 8-bit RGB pixels: log-probability, loss and mean."""
