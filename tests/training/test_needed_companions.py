"""Which companions a calibration fits."""

import pytest
from small_training import CONFIG

from diffplan.config import with_overrides
from diffplan.training.companions import find_needed

KNOWN = with_overrides(
    CONFIG,
    {
        "env.position_columns": [0, 1],
        "env.velocity_columns": [2, 3],
        "env.goal_columns": [0, 1],
        "env.step_seconds": 0.01,
    },
)


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ({}, {"support", "horizon_model", "inverse_dynamics"}),
        ({"planning.horizon.rule": "scan"}, {"support", "inverse_dynamics"}),
        ({"env.goal_columns": []}, {"support", "inverse_dynamics"}),
        ({"windows.columns": "actions_observations", "planning.controller": "actions"}, {"support", "horizon_model"}),
    ],
)
def test_what_no_plan_would_use_is_not_fitted(changes, needed):
    config = with_overrides(KNOWN, changes)
    assert find_needed(config, config.planning) == needed
