"""Trajectory datasets: format v1 on disk, exactly-once commits, windows for training, normalisation."""
