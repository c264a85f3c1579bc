"""Slot attention: softmax over slots, weighted mean over positions."""

from aime_kernels.slot_attention.op import slot_attention

__all__ = ["slot_attention"]
