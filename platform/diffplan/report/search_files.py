"""The result files of a search, besides its journal.

```
best.json                 the chosen settings (of a training study, the experiment); written last
trials.json               every trial
importances.json          the importance of each setting for each objective
pareto.json               the front of a search with two objectives
front/trial_<number>.json the settings of each point of the front, for `--settings`
search.png                trials or front, and importances
```
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from optuna.distributions import BaseDistribution

from diffplan.config import Config, SearchConfig, config_to_dict
from diffplan.config.study import Study
from diffplan.report.charts_search import FrontChart, draw_search
from diffplan.runs.layout import BEST
from diffplan.storage.store import LocalStore
from diffplan.tuning.front import find_front
from diffplan.tuning.importance import compute_importances
from diffplan.tuning.journal import TrialRecord
from diffplan.tuning.metrics import LESS_IS_BETTER, compute_merit
from diffplan.tuning.space import apply_params, list_overrides

TRIALS, IMPORTANCES, PARETO, FRONT, PICTURE = (
    "trials.json",
    "importances.json",
    "pareto.json",
    "front",
    "search.png",
)
METRICS = ("objective", "score_mean", "success_rate", "plan_seconds", "episodes")
DPI = 160


def write_search(
    directory: Path,
    *,
    study: Study,
    config: Config,
    search: SearchConfig,
    space: dict[str, BaseDistribution],
    trials: Sequence[TrialRecord],
    source: str,
    wall_seconds: float,
) -> dict[str, Any]:
    """Write the results of a search, replacing old ones.

    Args:
        directory: directory of the search.
        study: the study.
        config: the experiment.
        search: the size of the search.
        space: the search space.
        trials: all finished trials, at least one of them full.
        source: checkpoint or dataset of the search.
        wall_seconds: duration of the search, or of its part since it was last resumed.

    Returns:
        The content of `best.json`: `settings` of planning; the `params` of the trial and its `objective`, `score_mean`,
        `success_rate`, `plan_seconds` and `episodes`; the `study`, its `protocols`, `num_trials` and `wall_seconds`;
        `checkpoint`, or for a training study `dataset`, the whole experiment as `config` and arguments of
        `diffplan train` as `train_arguments`.
    """
    store = LocalStore(directory)
    full = [trial for trial in trials if trial.is_full and trial.metrics is not None]
    best = max(full, key=lambda trial: compute_merit(study, trial.metrics or {}))
    importances = {metric: compute_importances(trials, space, metric) for metric in study.objectives}
    importances = {metric: shares for metric, shares in importances.items() if shares}
    front = find_front(_values(study, full), [LESS_IS_BETTER[metric] for metric in study.objectives])
    _write(store, TRIALS, [_describe(trial) for trial in trials])
    _write(store, IMPORTANCES, importances)
    if study.is_pareto:
        _write_front(store, study, config, [full[i] for i in front], best, source)
    _draw(store, study, trials, full, front, best, importances)
    chosen = apply_params(study, config, best.params)
    record: dict[str, Any] = {
        "settings": config_to_dict(chosen.planning),
        "params": best.params,
        **_pick(best),
        "trial": best.number,
        "protocols": list(search.protocols),
        "num_trials": len(trials),
        "wall_seconds": wall_seconds,
        "study": config_to_dict(study),
        "search": config_to_dict(search),
    }
    if study.kind == "planner":
        record["checkpoint"] = source
    else:
        record["dataset"] = source
        record["config"] = config_to_dict(chosen)
        record["train_arguments"] = [
            text for name, value in list_overrides(study, best.params).items() for text in (f"--{name}", str(value))
        ]
    _write(store, BEST, record)
    return record


def _write_front(
    store: LocalStore, study: Study, config: Config, points: Sequence[TrialRecord], best: TrialRecord, source: str
) -> None:
    for stored in store.list(FRONT):  # of the front before
        store.delete(stored.name)
    rows = []
    for trial in points:
        settings = config_to_dict(apply_params(study, config, trial.params).planning)
        name = f"{FRONT}/trial_{trial.number}.json"
        _write(store, name, settings)
        rows.append(
            {
                "trial": trial.number,
                "settings_file": name,
                **_pick(trial),
                "merit": compute_merit(study, trial.metrics or {}),
                "params": trial.params,
                "settings": settings,
            }
        )
    _write(
        store,
        PARETO,
        {
            "objectives": list(study.objectives),
            "cost_weight": study.cost_weight,
            "best": best.number,
            "source": source,
            "points": rows,
        },
    )


def _draw(
    store: LocalStore,
    study: Study,
    trials: Sequence[TrialRecord],
    full: Sequence[TrialRecord],
    front: Sequence[int],
    best: TrialRecord,
    importances: dict[str, dict[str, float]],
) -> None:
    metric, chart = study.objectives[0], None
    if study.is_pareto:
        chart = FrontChart((metric, study.objectives[1]), _values(study, full), front, list(full).index(best))
    figure = draw_search(
        importances,
        [None if trial.metrics is None else trial.metrics[metric] for trial in trials],
        [trial.is_full for trial in trials],
        chart,
        metric,
        less_is_better=LESS_IS_BETTER[metric],
    )
    figure.set_dpi(DPI)
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content)
    store.replace(PICTURE, content.getvalue())


def _values(study: Study, trials: Sequence[TrialRecord]) -> list[list[float]]:
    return [[(trial.metrics or {})[metric] for metric in study.objectives] for trial in trials]


def _describe(trial: TrialRecord) -> dict[str, Any]:
    record = {"trial": trial.number, "params": trial.params, "error": trial.error, "is_full": trial.is_full}
    return {**record, **_pick(trial)}


def _pick(trial: TrialRecord) -> dict[str, Any]:
    metrics = trial.metrics or {}
    return {**{name: metrics.get(name) for name in METRICS}, **metrics}


def _write(store: LocalStore, name: str, value: Any) -> None:
    store.replace(name, (json.dumps(value, indent=2) + "\n").encode())
