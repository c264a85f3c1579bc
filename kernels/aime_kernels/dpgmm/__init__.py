"""Dirichlet-process Gaussian mixture: sticks, weights, densities and divergences, all differentiable."""
