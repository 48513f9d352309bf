"""Protocols, rollouts and scores."""
