"""One file a task: the loss terms, and the aggregator that sums them."""
