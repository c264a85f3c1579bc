"""Frames in and out of uint8: cutting windows and normalisation."""
