"""Where the values, pictures and findings of a run are shown: one file per tracker, behind one protocol."""
