"""Where datasets, checkpoints and results lie: local directories and object stores."""
