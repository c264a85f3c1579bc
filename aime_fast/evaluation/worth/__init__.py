"""What each part of a trained model is worth: its trivial counterpart in its place."""
