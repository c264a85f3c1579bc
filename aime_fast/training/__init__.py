"""The loop, its engines, and all that survives a stop."""
