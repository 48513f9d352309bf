"""Fields that hold one of several sections, told apart by their kind."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffplan.config import (
    Actions,
    InverseDynamics,
    Never,
    OwnController,
    PlanningConfig,
    Receding,
    Sooner,
    Tracking,
    config_from_dict,
    config_from_json,
    config_to_dict,
    config_to_json,
    with_overrides,
)
from diffplan.errors import ConfigError

CONTROLLERS = [
    Tracking(position_gain=3.0, pace=2.0),
    InverseDynamics(interpolation="hermite"),
    Actions(),
    OwnController(kind="my_module:MyController", max_lag=0.5),
]
RULES = [Never(), Sooner(interval=5, max_deviation=0.0), Receding(interval=3, warm_start=0.25)]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("controller", CONTROLLERS)
def test_every_kind_survives_json(controller: Any, rule: Any) -> None:
    settings = PlanningConfig(controller=controller, replanning=rule)
    assert config_from_json(PlanningConfig, config_to_json(settings)) == settings
    assert config_from_dict(PlanningConfig, config_to_dict(settings)) == settings


@given(before=st.sampled_from(CONTROLLERS), after=st.sampled_from(CONTROLLERS), whole_name=st.booleans())
def test_a_change_of_kind_keeps_what_both_have_and_resets_the_rest(before: Any, after: Any, whole_name: bool) -> None:
    name = "controller.kind" if whole_name else "controller"
    changed = with_overrides(PlanningConfig(controller=before), {name: after.kind}).controller
    assert type(changed) is type(after)
    for field in set(vars(after)) - {"kind"}:
        default = getattr(type(after), field)
        assert getattr(changed, field) == getattr(before, field, default), field


@pytest.mark.parametrize("order", [1, -1])
def test_a_kind_and_its_fields_may_be_given_in_any_order(order: int) -> None:
    changes = {"replanning.interval": 4, "replanning": "receding", "replanning.warm_start": 0.5}
    changed = with_overrides(PlanningConfig(), dict(list(changes.items())[::order]))
    assert changed.replanning == Receding(interval=4, warm_start=0.5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"controller": "actions", "controller.pace": 2.0}, ["controller.pace", "controller actions", "tracking"]),
        ({"replanning.warm_start": 0.5}, ["replanning.warm_start", "replanning sooner", "receding only"]),
        ({"replanning": "recedin"}, ["replanning.kind: expected one of never, sooner, receding", "'receding'?"]),
        ({"replanning": {"interval": 3}}, ["replanning.kind: expected one of never, sooner, receding"]),
        ({"replanning": {"kind": "never", "interval": 3}}, ["replanning.interval", "another kind"]),
        (
            {"replanning": {"kind": "sooner", "interval": "x"}},
            ["replanning.interval: expected a whole number, got 'x'"],
        ),
        ({"controller": 3}, ["controller.kind: expected one of tracking", "got 3"]),
        ({"replanning": "receding", "replanning.interval": 0}, ["planning.replanning.interval: expected at least 1"]),
        ({"controller.pace": 0}, ["planning.controller.pace: expected a positive number"]),
    ],
)
def test_what_a_kind_has_not_is_refused_in_one_line(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        with_overrides(PlanningConfig(), changes)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
