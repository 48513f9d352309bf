"""Keeping datasets in order: verification, compaction, merging, sweeping."""
