"""What a Gram matrix decides: one short file for each way of weighting task gradients."""
