"""Training tasks: one file a task, their registry, and the aggregator that computes their losses."""
