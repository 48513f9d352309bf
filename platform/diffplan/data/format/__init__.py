"""Dataset format v1: manifest, shards, commits, snapshots; exactly-once commits, reads with checksums."""
