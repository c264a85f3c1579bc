"""Slot attention: softmax over slots, weighted mean over positions."""

from aime_kernels.slot_attention.reference import slot_attention

__all__ = ["slot_attention"]
