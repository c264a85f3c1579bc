"""The two passes of gradient balancing over long vectors: their inner products, and their linear combinations."""
