"""The shard format: codecs, manifest, writer and reader."""
