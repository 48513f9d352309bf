"""What lies where in a run, what its stages cost and how far they are."""
