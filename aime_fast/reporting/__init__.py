"""Log writers: metrics, progress line and pictures of a run."""
