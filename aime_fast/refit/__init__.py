"""Dynamics, prior and heads of a finished model, learnt anew from its latents."""
