"""Where task gradients live: flat buffers and their shards, on any number of ranks."""
