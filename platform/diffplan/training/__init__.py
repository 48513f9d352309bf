"""Training in one process: a pure step, the loop around it, checkpoints. No Ray."""
