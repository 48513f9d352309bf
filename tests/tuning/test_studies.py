"""Studies and the spaces that they span around an experiment."""

import dataclasses
import json
import warnings
from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from diffplan.config import SearchConfig, config_to_json, with_overrides
from diffplan.config.study import Among, Between, Scaled, Study
from diffplan.errors import ConfigError, PlanningError
from diffplan.tasks.registry import find_experiment, find_task, get_preset, list_presets
from diffplan.tasks.task import Task
from diffplan.tuning.space import apply_params, list_overrides, make_space, read_own_values
from diffplan.tuning.studies import STUDIES, find_study, list_studies, size_search

CONFIG = get_preset("maze2d-umaze")
MAZE2D = find_task("maze2d")
ALL = {**STUDIES, **MAZE2D.studies}


def choices_of(study: Study, name: str, **changes: object) -> tuple:
    distribution = make_space(study, with_overrides(CONFIG, changes))[name]
    assert isinstance(distribution, CategoricalDistribution)
    return distribution.choices


@pytest.mark.parametrize(
    ("preset", "name"),
    [(preset, name) for preset in list_presets() for name in list_studies(find_experiment(preset).task)],
)
def test_every_choice_of_every_study_is_a_valid_experiment_and_its_own_values_are_there(preset: str, name: str) -> None:
    experiment = find_experiment(preset)
    study, config = list_studies(experiment.task)[name], experiment.config
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        space, own = make_space(study, config), read_own_values(study, config)
    said = [str(warning.message) for warning in caught]
    of_other_kind = {text.partition(":")[0] for text in said if "has another kind of it" in text}
    assert set(space) == set(study.vary) - of_other_kind
    assert set(space) != set()
    for field, distribution in space.items():
        assert distribution._contains(distribution.to_internal_repr(own[field])), field
        if isinstance(distribution, FloatDistribution):
            values = [distribution.low, (distribution.low + distribution.high) / 2, distribution.high]
        else:
            assert isinstance(distribution, CategoricalDistribution)
            values = list(distribution.choices)
        for value in values:
            apply_params(study, config, {field: value})
    assert apply_params(study, config, own).planning == config.planning


def test_a_range_is_widened_to_the_experiments_own_value() -> None:
    study = Study(vary={"planning.controller.position_gain": Between(low=3.0, high=5.0, log=True)})
    (distribution,) = make_space(study, with_overrides(CONFIG, {"planning.controller.position_gain": 10.0})).values()
    assert distribution == FloatDistribution(3.0, 10.0, log=True)
    still = with_overrides(CONFIG, {"planning.controller.position_gain": 0.0})  # 0 has no logarithm
    assert list(make_space(study, still).values()) == [FloatDistribution(0.0, 5.0)]


def test_choices_that_cannot_be_are_left_out() -> None:
    study = MAZE2D.studies["planner"]
    name = "planning.sampling.num_steps"
    assert choices_of(study, name) == (4, 8, 16)
    assert choices_of(study, name, **{"diffusion.num_diffusion_steps": 8}) == (4, 8)
    horizons = Study(vary={"planning.horizon.min": Among(among=(4, 6, 8, 12))})
    shortest = {"network.dim_mults": [1, 2, 4, 8], "windows.min_horizon": 8, "planning.horizon.min": 8}
    assert choices_of(horizons, "planning.horizon.min", **shortest) == (8, 12)

    def refuse_scanning(config) -> None:
        if config.planning.horizon.rule == "scan":
            raise PlanningError("no")

    rule = make_space(MAZE2D.studies["pareto"], CONFIG, refuse_scanning)["planning.horizon.rule"]
    assert isinstance(rule, CategoricalDistribution)
    assert rule.choices == ("auto",)


def test_shares_of_the_own_value_are_whole_multiples() -> None:
    study = Study(kind="training", vary={"network.dim": Scaled(shares=(0.1, 0.5, 1.5), multiple=8)})
    assert choices_of(study, "network.dim") == (8, 16, 32, 48)


def test_fields_that_go_together_take_the_same_value() -> None:
    study = MAZE2D.studies["training"]
    params = {"windows.max_horizon": 27, "windows.stride": 8}
    assert list_overrides(study, params) == {
        "windows.max_horizon": 27, "planning.horizon.max": 27, "windows.stride": 8,
    }  # fmt: skip
    config = apply_params(study, CONFIG, params)
    assert (config.windows.max_horizon, config.planning.horizon.max, config.windows.stride) == (27, 27, 8)


def test_a_study_brings_its_size_where_it_has_one() -> None:
    search = SearchConfig(num_trials=5, num_blocks=3)
    assert size_search(STUDIES["planner"], search) == search
    assert size_search(MAZE2D.studies["pareto"], search) == dataclasses.replace(search, num_trials=48)


@pytest.mark.parametrize("name", ALL)
def test_studies_are_json_files(name: str, tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text(config_to_json(ALL[name]))
    assert find_study(path, MAZE2D) == ALL[name]


def test_a_task_has_its_own_studies_first_and_then_those_of_every_task() -> None:
    assert list_studies(Task(name="any")) == STUDIES
    assert next(iter(list_studies(MAZE2D))) == "planner"
    assert set(list_studies(MAZE2D)) == set(ALL)
    assert find_study("planner", MAZE2D) == MAZE2D.studies["planner"] != STUDIES["planner"]
    assert find_study("optimizer", MAZE2D) == STUDIES["optimizer"]


def test_numbers_of_a_file_keep_their_kind(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text(
        '{"vary": {"planning.replanning.interval": {"among": [0, 20]}, "planning.guidance.scale": {"among": [1.0]}}}'
    )
    study = find_study(path, MAZE2D)
    assert [type(v) for values in study.vary.values() if isinstance(values, Among) for v in values.among] == [
        int, int, float,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"vary": {}}, ["vary", "at least one"]),
        ({"vary": {"planning.controller.position_gain": {"low": 2.0, "high": 1.0}}}, ["less than high"]),
        ({"vary": {"planning.controller.position_gain": {"low": 0.0, "high": 1.0, "log": True}}}, ["positive"]),
        ({"vary": {"planning.controller.position_gain": {"among": []}}}, ["among", "at least one"]),
        ({"vary": {"network.dim": {"shares": [1.0]}}}, ["planning", "network.dim"]),
        (
            {"vary": {"planning.controller.position_gain": {"among": [1.0]}}, "objectives": ["speed"]},
            ["objectives", "speed"],
        ),
        (
            {"vary": {"planning.controller.position_gain": {"among": [1.0]}}, "objectives": []},
            ["objectives", "one or two"],
        ),
        ({"vary": {"planning.controller.position_gain": {"among": [1.0]}}, "trials": 3}, ["trials"]),
    ],
)
def test_bad_studies_are_one_clear_line(values: dict, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ConfigError) as error:
        find_study(path, MAZE2D)
    assert "\n" not in str(error.value)
    for word in ["bad.json", *words]:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("vary", "words"),
    [
        ({"planning.position_gian": Between(low=1.0, high=2.0)}, ["planning.controller.position_gain"]),
        ({"planning.controller.kind": Between(low=1.0, high=20.0)}, ["controller", "among"]),
        ({"planning": Among(among=(1,))}, ["planning"]),
        ({"planning.controller.position_gain": Between(low=1.0, high=2.0, also=("planning.gain",))}, ["planning.gain"]),
        ({"planning.replanning.interval": Between(low=1.0, high=20.0)}, ["planning.replanning.interval"]),
        ({"planning.controller": Among(among=("actions",))}, ["planning.controller.kind"]),
        ({"planning.guidance.guides": Among(among=("goal_distance()",))}, ["guides"]),
        ({"planning.controller.kind": Scaled(shares=(1.0,))}, ["controller", "among"]),
    ],
)
def test_fields_that_cannot_be_searched_are_one_clear_line(vary: dict, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        make_space(Study(vary=vary), CONFIG)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_unknown_studies_name_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'pareto'"):
        find_study("parteo", MAZE2D)
    with pytest.raises(ConfigError, match=r"none\.json"):
        find_study(tmp_path / "none.json", MAZE2D)


def test_fields_of_another_kind_are_left_out_of_a_study() -> None:
    study = Study(
        vary={
            "planning.controller.position_gain": Between(low=1.0, high=2.0),
            "planning.controller.pace": Between(low=1.0, high=2.0),
            "planning.replanning.interval": Among(among=(1, 2)),
        }
    )
    acting = with_overrides(CONFIG, {"planning.controller": "inverse_dynamics", "planning.replanning": "never"})
    with pytest.warns(UserWarning, match="left out of the search") as warned:
        assert list(make_space(study, acting)) == ["planning.controller.pace"]
    assert [str(warning.message).partition(":")[0] for warning in warned] == [
        "planning.controller.position_gain",
        "planning.replanning.interval",
    ]
    assert list(make_space(study, CONFIG)) == list(study.vary)
    with (
        pytest.warns(UserWarning, match="left out of the search"),
        pytest.raises(ConfigError, match=r"got only fields of other kinds: planning\.controller\.position_gain"),
    ):
        make_space(study, with_overrides(acting, {"planning.controller": "actions"}))


def test_a_kind_without_a_field_that_is_varied_too_is_left_out() -> None:
    vary = {
        "planning.controller.kind": Among(among=("inverse_dynamics", "actions")),
        "planning.controller.pace": Between(low=1.0, high=2.0),
    }
    kinds = make_space(Study(vary=vary), CONFIG)["planning.controller.kind"]
    assert set(kinds.choices) == {"tracking", "inverse_dynamics"}  # type: ignore[attr-defined]
