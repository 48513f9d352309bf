"""Storage of datasets, checkpoints and results: local directories and object stores."""
