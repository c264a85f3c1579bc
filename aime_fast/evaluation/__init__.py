"""How good a trained model is: metrics and rollouts."""
