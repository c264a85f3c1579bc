"""The networks that the world model is made of."""
