"""From any recording to a folder of shards."""
