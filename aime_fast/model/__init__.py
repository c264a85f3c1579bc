"""The five parts of the world model."""
