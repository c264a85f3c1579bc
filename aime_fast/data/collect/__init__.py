"""Recording new episodes of dm_control tasks."""
