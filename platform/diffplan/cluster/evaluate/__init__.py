"""Evaluation by Ray actors."""
