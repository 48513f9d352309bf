"""Dataset format v1: manifest, shards, commits, snapshots; written exactly once, read with checksums."""
