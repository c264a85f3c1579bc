"""What a validation shows of a model while it trains."""
