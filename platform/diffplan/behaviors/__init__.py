"""Behaviors: what acts while data is collected. `make_behavior` makes one from its name."""

from diffplan.behaviors.behavior import Behavior
from diffplan.behaviors.registry import BEHAVIORS, make_behavior, parse_mixture

__all__ = ["BEHAVIORS", "Behavior", "make_behavior", "parse_mixture"]
