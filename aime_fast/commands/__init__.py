"""The command line: one file per verb, each with its arguments and its function."""
