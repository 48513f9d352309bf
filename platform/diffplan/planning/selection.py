"""Choosing among candidate plans."""

from __future__ import annotations

from typing import Literal

import numpy as np

Selection = Literal["consistency", "guide"]

VIOLATION_TOLERANCE = 1e-4
"""Violations up to this, in the units of the limit, are rounding."""


def rank(
    violations: np.ndarray,
    speed_errors: np.ndarray,
    consistent: np.ndarray,
    guide_scores: np.ndarray | None,
    selection: Selection,
) -> np.ndarray:
    """Candidates from best to worst.

    One that keeps the limits of the guides comes before one that violates them (the more, the later); then consistent
    plans come before others; then the guides' score decides, if they are to select; then consistency itself.

    Args:
        violations: float[batch, candidates].
        speed_errors: float[batch, candidates].
        consistent: bool[batch, candidates].
        guide_scores: float[batch, candidates], None where there are no guides.
        selection: who decides among consistent candidates.

    Returns:
        int[batch, candidates], indices of candidates.
    """
    violated = np.where(violations > VIOLATION_TOLERANCE, violations, 0.0)
    keys = [speed_errors]
    if selection == "guide" and guide_scores is not None:
        # Among inconsistent plans the guides have no say: they may score what cannot be.
        keys.append(np.where(consistent, -guide_scores, 0.0))
    return np.lexsort((*keys, ~consistent, violated), axis=1)
