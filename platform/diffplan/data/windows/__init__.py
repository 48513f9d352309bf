"""Training examples: windows of episodes, normalised, from memory, mapped shards or blocks."""
