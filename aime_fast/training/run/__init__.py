"""What surrounds the loop: the run's folder, its lock, signals and the watchdog."""
