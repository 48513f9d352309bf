"""How much each setting mattered in a search."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import optuna
from optuna.distributions import BaseDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import create_trial

from diffplan.tuning.journal import TrialRecord
from diffplan.tuning.metrics import LESS_IS_BETTER

TOP_SHARE, TOP_TRIALS = 0.1, 5
FEWEST_TRIALS = 4
"""Of fewer trials nothing is said."""


def compute_importances(
    trials: Sequence[TrialRecord], space: dict[str, BaseDistribution], metric: str
) -> dict[str, float]:
    """Share of each setting in what sets the best trials apart from all, largest first; they sum to 1.

    The best are a tenth of the trials, and at least five of them where that is no more than half. Trials that were
    stopped early count with what they had reached.

    Args:
        trials: of a search.
        space: what it varied.
        metric: what the best are best in.

    Returns:
        Shares by name of the setting; empty for fewer than four trials.

    Source: PED-ANOVA, Watanabe et al. 2023, as implemented by Optuna.
    """
    known = [trial for trial in trials if trial.metrics is not None and set(trial.params) == set(space)]
    if len(known) < FEWEST_TRIALS:
        return {}
    sign = 1.0 if LESS_IS_BETTER[metric] else -1.0
    study = optuna.create_study()
    study.add_trials(
        [
            create_trial(params=trial.params, distributions=space, value=sign * trial.metrics[metric])
            for trial in known
            if trial.metrics is not None
        ]
    )
    share = max(TOP_SHARE, min(0.5, TOP_TRIALS / len(known)))
    evaluator = PedAnovaImportanceEvaluator(target_quantile=share)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it looks for small values, whatever the study does: so does this study
        found = get_param_importances(study, evaluator=evaluator, params=list(space), target=lambda t: t.values[0])
    return dict(sorted(((name, float(value)) for name, value in found.items()), key=lambda item: -item[1]))
