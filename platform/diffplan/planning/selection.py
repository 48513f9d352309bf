"""Choosing among candidate plans."""

from __future__ import annotations

from typing import Literal

import numpy as np

Selection = Literal["consistency", "guide"]

VIOLATION_TOLERANCE = 1e-4
"""Violations up to this, in the units of the limit, count as rounding errors."""


def rank(
    violations: np.ndarray,
    speed_errors: np.ndarray,
    consistent: np.ndarray,
    guide_scores: np.ndarray | None,
    selection: Selection,
) -> np.ndarray:
    """Candidates from best to worst.

    Candidates are ordered by violation of the guides' limits; then consistent ones come before others; then, with the
    rule `guide`, by the score of the guides; then by speed error.

    Args:
        violations: float[batch, candidates].
        speed_errors: float[batch, candidates].
        consistent: bool[batch, candidates].
        guide_scores: float[batch, candidates], None where there are no guides.
        selection: the rule that orders consistent candidates.

    Returns:
        int[batch, candidates], indices of candidates.
    """
    violated = np.where(violations > VIOLATION_TOLERANCE, violations, 0.0)
    keys = [speed_errors]
    if selection == "guide" and guide_scores is not None:
        # The score of an inconsistent plan does not count: the plan cannot be followed.
        keys.append(np.where(consistent, -guide_scores, 0.0))
    return np.lexsort((*keys, ~consistent, violated), axis=1)
