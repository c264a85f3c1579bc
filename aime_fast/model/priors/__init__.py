"""Priors of the latent state: one file each."""
