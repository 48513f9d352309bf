"""Training by Ray Train."""
