"""Studies of this family: what the action reads, how candidates are weighted, and how many there are."""

from __future__ import annotations

from diffplan.config.study import Among, Between, Scaled, Study

_SEARCHED: dict[str, Between | Among | Scaled] = {
    "planning.controller.reads": Among(among=("next", "far", "all")),
    "planning.selection.num_candidates": Among(among=(8, 32)),
    "planning.sampling.num_steps": Among(among=(2, 3, 5)),
}

STUDIES: dict[str, Study] = {
    "jumps": Study(
        description="how plans are weighted and acted on: value, temperature, candidates, action head, denoising steps",
        vary={
            **_SEARCHED,
            "planning.guidance.value": Among(among=("plan", "last")),
            "planning.selection.rule": Among(among=("soft", "mean")),
            "planning.selection.temperature": Among(among=(0.125, 0.25, 0.5, 1.0)),
        },
        num_trials=12,
    ),
    "plain": Study(
        description="the planner without a value: candidates, action head, denoising steps",
        vary=_SEARCHED,
        num_trials=12,
    ),
}
"""By name, for the small presets. `plain` is for settings with the rule `mean`, which weighs all alike."""
