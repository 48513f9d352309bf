"""The section of the report page on the search of planner settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffplan.config import config_to_dict
from diffplan.report.charts import draw_setting, draw_trials
from diffplan.report.charts_search import FrontChart, draw_front, draw_importances
from diffplan.report.contents import RunContents, Search
from diffplan.report.images import Picture, svg
from diffplan.report.section import Section


def make_search(run: RunContents) -> Section:
    """The results of the search of planner settings."""
    search = run.search
    if search is None:
        return Section("search", "Search for planner settings", "search")
    trials = [trial for trial in search.trials if trial.get("objective") is not None]
    full = [trial["episodes"] >= search.full_episodes for trial in trials]
    names = [name for name in trials[0]["params"] if all(name in t["params"] for t in trials)] if trials else []
    objectives = [trial["objective"] for trial in trials]
    content = {
        "num_trials": len(search.trials),
        "protocols": " and ".join(run.title_of(name) for name in search.best.get("protocols", ())),
        "seconds": search.best.get("wall_seconds"),
        "num_full": sum(full),
        "full_episodes": search.full_episodes,
        "num_stopped": len(full) - sum(full),
        "num_failed": len(search.trials) - len(trials),
        "objective": search.best["objective"],
        "metric": search.best.get("search", {}).get("objective") or run.task.objective,
        "settings": _compare_settings(run, search, trials),
        "trials": svg(draw_trials(objectives, full), "Objective of each trial") if trials else None,
        "importances": svg(draw_importances(search.importances), "Importance of each setting")
        if search.importances
        else None,
        "front": svg(draw_front(_find_front(search, search.pareto)), "Pareto front of the search")
        if search.pareto is not None
        else None,
        "panels": [_draw_panel(search, name, trials, objectives, full) for name in names],
    }
    return Section("search", "Search for planner settings", "search", content)


def _draw_panel(
    search: Search, name: str, trials: Sequence[dict[str, Any]], objectives: Sequence[float], full: Sequence[bool]
) -> Picture:
    values = [trial["params"][name] for trial in trials]
    chosen = search.best.get("params", {}).get(
        name, _list_settings(search.best["settings"]).get(name.removeprefix("planning."))
    )
    chart = draw_setting(values, objectives, full, chosen, name.removeprefix("planning."))
    return svg(chart, f"Objective against {name}")


def _find_front(search: Search, pareto: dict[str, Any]) -> FrontChart:
    vertical, horizontal = pareto["objectives"]
    full = [trial for trial in search.trials if trial.get("is_full")]
    rows = {trial["trial"]: i for i, trial in enumerate(full)}
    return FrontChart(
        (vertical, horizontal),
        [[trial[vertical], trial[horizontal]] for trial in full],
        [rows[point["trial"]] for point in pareto["points"]],
        rows[pareto["best"]],
    )


def _compare_settings(
    run: RunContents, search: Search, trials: Sequence[dict[str, Any]]
) -> list[tuple[str, object, object]]:
    """The searched settings before (those of the checkpoint) and after the search."""
    best = _list_settings(search.best["settings"])
    before = _list_settings(config_to_dict(run.config.planning)) if run.config else {}
    names = [name.removeprefix("planning.") for name in (trials[0]["params"] if trials else before or best)]
    return [(name, before.get(name), best.get(name)) for name in names]


def _list_settings(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found.update(_list_settings(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return found
