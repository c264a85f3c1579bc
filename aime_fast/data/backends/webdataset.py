"""The `webdataset` back-end: shards streamed by the WebDataset library from files or commands, decoded by Pillow."""

from aime_fast.config import LoaderConfig
from aime_fast.data.backends.stream import StreamBackend
from aime_fast.data.libraries import load_webdataset
from aime_fast.data.streaming.reader import Shards


class WebDatasetBackend(StreamBackend):
    """A stream that decodes each chunk once, as it is read."""

    def __init__(self, shards: Shards, config: LoaderConfig, split: str, seed: int, description: str) -> None:
        """`UserError` without the library, or if the split has no episode as long as a window."""
        load_webdataset()
        super().__init__(shards, shards.read_with_webdataset, config, split, seed, description)
