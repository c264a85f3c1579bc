"""Windows from shards that are read from front to back."""
