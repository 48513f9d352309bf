"""Choosing among candidate plans."""

from __future__ import annotations

from typing import Literal

import numpy as np

Selection = Literal["consistency", "guide", "soft", "mean"]
AVERAGES = ("soft", "mean")
"""Rules that average the candidates."""

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


def weigh(
    violations: np.ndarray, guide_scores: np.ndarray | None, selection: Selection, temperature: float
) -> np.ndarray:
    """Weights of candidates in their average: those with the smallest violation, by score or with equal weights.

    Source: Williams et al. 2017 (MPPI), eq. 26, with scores in standard deviations of the candidates' scores, so that
    the temperature means the same in every environment.

    Args:
        violations: float[batch, candidates].
        guide_scores: float[batch, candidates]; None where there are no guides.
        selection: `soft` or `mean`.
        temperature: of `soft`.

    Returns:
        float[batch, candidates], each row with the sum 1.
    """
    violated = np.where(violations > VIOLATION_TOLERANCE, violations, 0.0)
    kept = violated <= violated.min(axis=1, keepdims=True)
    weights = kept.astype(np.float64)
    if selection == "soft" and guide_scores is not None:
        scores = np.where(kept, guide_scores, np.nan)
        spread = np.nanstd(scores, axis=1, keepdims=True)
        levels = (scores - np.nanmax(scores, axis=1, keepdims=True)) / np.where(spread > 0, spread, 1.0)
        weights = np.where(kept, np.exp(levels / temperature), 0.0)
    return weights / weights.sum(axis=1, keepdims=True)
