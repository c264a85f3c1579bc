"""What a step costs: launches now; times and memory by phase."""
