"""Tar shards: codecs, manifest, writer and reader."""
