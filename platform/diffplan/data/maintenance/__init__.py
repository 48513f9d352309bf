"""Maintenance of datasets: verification, compaction, merging, sweeping."""
