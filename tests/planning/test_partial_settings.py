"""Some settings, from wherever they come, are merged over those of the checkpoint: nothing that was tuned is lost."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from diffplan.cli.settings import choose_settings
from diffplan.config import Config, PlanningConfig, config_to_dict, with_overrides
from diffplan.errors import ConfigError
from diffplan.planning.settings import load_settings
from diffplan.tasks.registry import get_preset, list_presets, task_of
from diffplan.tuning.space import apply_params, make_space, read_own_values
from diffplan.tuning.studies import find_study, list_studies

TUNED: Config = get_preset("maze2d-large")


def list_fields(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from list_fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


DEFAULTS = dict(list_fields(config_to_dict(PlanningConfig())))
OWN = dict(list_fields(config_to_dict(TUNED.planning)))
FIELDS = [name for name in OWN if not name.endswith(".kind")]


def nest(name: str, value: Any) -> dict[str, Any]:
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


def test_the_checkpoint_differs_from_the_defaults() -> None:
    assert sum(OWN[name] != DEFAULTS.get(name) for name in OWN) >= 5


@pytest.mark.parametrize("name", FIELDS)
def test_a_file_or_a_flag_for_one_field_leaves_the_others(name: str, tmp_path: Path) -> None:
    value = DEFAULTS.get(name, OWN[name])
    expected = with_overrides(TUNED.planning, {name: value})
    for number, content in enumerate((nest(name, value), {name: value}, {"settings": nest(name, value)})):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(content))
        chosen = choose_settings(TUNED.planning, "model", file=str(path), overrides={}, trust=True)
        assert chosen == expected
        assert load_settings(path, TUNED.planning) == expected
        with pytest.raises(ConfigError, match=r"expected all planner settings, got none for .*the checkpoint"):
            load_settings(path)
    flags = {f"planning.{name}": value}
    assert choose_settings(TUNED.planning, "model", file=None, overrides=flags, trust=True) == expected
    changed = dict(list_fields(config_to_dict(expected)))
    assert {other for other in OWN if changed[other] != OWN[other]} <= {name}


def test_a_whole_file_needs_no_base(tmp_path: Path) -> None:
    path = tmp_path / "best.json"
    path.write_text(json.dumps({"settings": config_to_dict(TUNED.planning), "objective": 1.0}))
    assert load_settings(path) == TUNED.planning


@pytest.mark.parametrize("preset", [name for name in list_presets() if name.endswith(("large", "gymnasium", "hopper"))])
def test_a_trial_of_any_study_changes_only_what_the_study_varies(preset: str) -> None:
    config = get_preset(preset)
    task = task_of(config.env)
    for name in list_studies(task):
        study = find_study(name, task)
        own = read_own_values(study, config)
        if not own:
            continue
        params = {field: distribution.to_external_repr(_pick(distribution)) for field, distribution in
                  make_space(study, config).items()}  # fmt: skip
        varied = {field for name in own for field in (name, *study.vary[name].also)}
        before, after = (dict(list_fields(config_to_dict(c))) for c in (config, apply_params(study, config, params)))
        assert {field for field in before if after.get(field) != before[field]} <= varied


def _pick(distribution: Any) -> Any:
    """The last choice, or the upper end, in the form that Optuna stores."""
    choices = getattr(distribution, "choices", None)
    return distribution.high if choices is None else len(choices) - 1
