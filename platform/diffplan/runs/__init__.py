"""Layout of runs, and the cost and progress of their stages."""
