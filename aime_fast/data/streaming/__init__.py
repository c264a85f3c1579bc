"""Windows from shards that are only read forwards."""
