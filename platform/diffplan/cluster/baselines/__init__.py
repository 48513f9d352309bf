"""Baselines trained by RLlib."""
