"""The ways windows are read, behind one interface."""
