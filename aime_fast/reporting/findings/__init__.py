"""What goes wrong in a run, named while it trains: the rules, and the watch that applies them to the rows."""
