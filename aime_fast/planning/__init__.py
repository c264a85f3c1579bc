"""What a run will need, counted before it starts: memory, time, network, disk and cost."""
