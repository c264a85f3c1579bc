"""From recorded trajectories to device tensors."""
