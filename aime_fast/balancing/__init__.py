"""Rotation-based gradient balancing (RGB): the mathematics, its Gram form, and its shards."""
