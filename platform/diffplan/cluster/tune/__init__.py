"""Searches by Ray Tune."""
