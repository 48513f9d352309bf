"""From an observation to a plan, and from a plan to actions."""
