"""One training step on one process or on many: the plain engine and DeepSpeed."""
