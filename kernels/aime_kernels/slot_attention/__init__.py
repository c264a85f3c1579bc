"""Slot attention: softmax over slots, weighted mean over positions."""
