"""One reader a format, each giving `Episode` records."""
