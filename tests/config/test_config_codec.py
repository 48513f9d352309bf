import dataclasses
import json
import pickle

import pytest

from diffplan.config import (
    Config,
    EnvConfig,
    NetworkConfig,
    PlanningConfig,
    SearchConfig,
    SelectionConfig,
    TrainingConfig,
    config_from_dict,
    config_from_json,
    config_to_dict,
    config_to_json,
    with_overrides,
)
from diffplan.errors import ConfigError
from diffplan.layout import Layout
from diffplan.tasks.registry import get_preset, list_presets

CONFIG = get_preset("maze2d-umaze")


def refuse(call, *parts):
    with pytest.raises(ConfigError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("name", list_presets())
def test_preset_survives_json(name):
    config = get_preset(name)
    again = config_from_json(Config, config_to_json(config))
    assert again == config
    assert again.network.dim_mults == config.network.dim_mults  # a tuple, not a list
    assert isinstance(again.network.dim_mults, tuple)


@pytest.mark.parametrize("name", list_presets())
def test_preset_survives_a_pickle_and_has_a_hash(name):
    config = get_preset(name)
    again = pickle.loads(pickle.dumps(config))
    assert again == config
    assert hash(again) == hash(config)


def test_configs_are_keys_and_differ_where_their_arguments_do():
    small = with_overrides(CONFIG, {"env.env_kwargs": {"maze": "#####/#GOO#/#####"}})
    assert len({CONFIG, small, get_preset("maze2d-umaze")}) == 2
    assert pickle.loads(pickle.dumps(small)) == small


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CONFIG.training.num_steps = 3


def test_dict_holds_json_values_only():
    values = config_to_dict(CONFIG)
    assert json.loads(json.dumps(values)) == values
    assert values["network"]["dim_mults"] == [1, 2, 4]


def test_every_preset_can_be_looked_up_and_unknown_ones_suggest():
    assert list_presets() == sorted(list_presets())
    assert {"maze2d-umaze", "maze2d-umaze-smoke", "janner-maze2d-large"} <= set(list_presets())
    refuse(lambda: get_preset("maze2d-umase"), "'maze2d-umase'", "did you mean 'maze2d-umaze'?")


@pytest.mark.parametrize(
    ("maze", "horizon", "num_diffusion_steps"), [("umaze", 128, 64), ("medium", 256, 256), ("large", 384, 256)]
)
def test_published_presets_are_those_of_the_paper(maze, horizon, num_diffusion_steps):
    config = get_preset(f"janner-maze2d-{maze}")
    assert config.windows.horizons == config.planning.horizon.tried == (horizon,)
    assert config.diffusion.num_diffusion_steps == config.planning.sampling.num_steps == num_diffusion_steps
    assert (config.network.dim, config.network.dim_mults, config.network.attention) == (32, (1, 4, 8), False)
    training = config.training
    assert (training.num_steps, training.batch_size, training.accumulation_steps) == (2_000_000, 32, 2)
    assert (training.learning_rate, training.ema_decay, training.ema_interval) == (2e-4, 0.995, 10)
    assert (config.planning.sampling.sampler, config.planning.guidance.scale) == ("ddpm", 0.0)
    assert (config.windows.columns, config.windows.stride) == ("actions_observations", 1)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("training", "learning_rate", 3e-4),
        ("training", "max_gradient_norm", None),
        ("network", "dim_mults", (1, 4)),
        ("collection", "behavior", "random"),
        ("env", "env_kwargs", {"reward_type": "dense"}),
        ("windows", "goal_columns", ()),
    ],
)
def test_override_is_the_same_as_replacing(section, field, value):
    expected = dataclasses.replace(CONFIG, **{section: dataclasses.replace(getattr(CONFIG, section), **{field: value})})
    assert expected != CONFIG
    assert with_overrides(CONFIG, {f"{section}.{field}": value}) == expected


def test_several_overrides_act_together_and_leave_the_original_alone():
    # The first alone would be refused: it lies above the longest horizon.
    changed = with_overrides(CONFIG, {"planning.horizon.min": 40, "planning.horizon.max": 60})
    assert changed.planning.horizon.tried == tuple(range(40, 61))
    assert get_preset("maze2d-umaze") == CONFIG
    assert with_overrides(CONFIG, {}) == CONFIG


def test_section_alone_can_be_overridden():
    assert with_overrides(PlanningConfig(), {"selection.num_candidates": 7}) == PlanningConfig(
        selection=SelectionConfig(num_candidates=7)
    )


@pytest.mark.parametrize(
    ("key", "wrong", "suggestion"),
    [
        ("training.learing_rate", "training.learing_rate", "training.learning_rate"),
        ("trainin.learning_rate", "trainin", "training"),
        ("planing", "planing", "planning"),
        ("env.env_idd", "env.env_idd", "env.env_id"),
    ],
)
def test_unknown_override_suggests(key, wrong, suggestion):
    refuse(lambda: with_overrides(CONFIG, {key: 1}), f"got {wrong!r}", f"Did you mean {suggestion!r}?")


@pytest.mark.parametrize("key", ["training.num_steps.more", "env.env_kwargs.maze"])
def test_override_below_a_value_is_refused(key):
    refuse(lambda: with_overrides(CONFIG, {key: 1}), key.rpartition(".")[0], "replaced whole", f"got {key!r}")


def test_unknown_key_of_a_file_suggests_the_whole_name():
    values = config_to_dict(CONFIG)
    values["diffusion"]["num_diffusion_step"] = 3
    refuse(lambda: config_from_dict(Config, values), "Did you mean 'diffusion.num_diffusion_steps'?")
    refuse(
        lambda: config_from_dict(PlanningConfig, {"sampling": {"samplr": "ddim"}}), "Did you mean 'sampling.sampler'?"
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("training.num_steps", "many"),
        ("training.num_steps", 2.5),
        ("training.learning_rate", None),
        ("network.dim_mults", 3),
        ("network.attention", "perhaps"),
        ("planning.sampling.sampler", "dpm"),
        ("diffusion.prediction", "epsilon"),
        ("windows.normalization", "quantiles"),
        ("env.env_id", 3),
        ("env.env_kwargs", [1]),
    ],
)
def test_wrong_type_names_the_field_and_the_value(key, value):
    refuse(lambda: with_overrides(CONFIG, {key: value}), f"{key}: ", f"got {value!r}")


def test_missing_field_is_named():
    refuse(lambda: config_from_dict(Config, {}), "env: ")
    refuse(lambda: config_from_dict(Config, {"env": {}}), "env.env_id: ")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("collection.num_steps", 0),
        ("collection.action_noise", -0.1),
        ("windows.min_horizon", 1),
        ("windows.max_horizon", 3),
        ("windows.stride", 0),
        ("network.dim", 12),
        ("network.dim", 0),
        ("network.dim_mults", ()),
        ("network.dim_mults", (1, 0)),
        ("diffusion.num_diffusion_steps", 0),
        ("diffusion.loss_discount", 0.0),
        ("diffusion.action_weight", 0.0),
        ("training.batch_size", 0),
        ("training.learning_rate", float("nan")),
        ("training.ema_decay", 1.0),
        ("training.ema_interval", 0),
        ("planning.horizon.max", 3),
        ("planning.selection.num_candidates", 0),
        ("planning.sampling.temperature", -1.0),
        ("search.num_trials", 0),
        ("env.step_seconds", 0.0),
        ("env.velocity_columns", (2,)),
    ],
)
def test_value_out_of_range_names_the_field_and_the_value(key, value):
    refuse(lambda: with_overrides(CONFIG, {key: value}), f"{key}: expected", f"got {value!r}")


@pytest.mark.parametrize("field", ["windows.min_horizon", "planning.horizon.min"])
def test_horizons_must_fit_the_network(field):
    deeper = {"network.dim_mults": (1, 2, 4, 8, 8), "windows.min_horizon": 16, "planning.horizon.min": 16}
    assert with_overrides(CONFIG, deeper).network.min_horizon == 16
    refuse(
        lambda: with_overrides(CONFIG, {**deeper, field: 15}),
        f"{field}: expected at least 16",
        "got 15",
    )


def test_range_is_checked_however_a_config_is_made():
    refuse(lambda: TrainingConfig(num_steps=0), "training.num_steps", "got 0")
    refuse(lambda: SearchConfig(num_blocks=-1), "search.num_blocks", "got -1")
    refuse(lambda: NetworkConfig(dim=9), "network.dim", "multiple of 8")


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", '"text"'])
def test_text_that_is_no_json_object_is_refused(text):
    refuse(lambda: config_from_json(Config, text), "Config: expected")


def test_units_of_collection_are_whole_and_cover_the_episodes_once():
    settings = {"collection.num_steps": 801, "collection.episode_steps": 100, "collection.episodes_per_unit": 4}
    collection = with_overrides(CONFIG, settings).collection
    assert (collection.max_unit_steps, collection.num_units) == (4 * collection.max_episode_steps, 3)
    assert [e for unit in range(3) for e in collection.episodes_of_unit(unit)] == list(range(12))
    larger = with_overrides(CONFIG, {**settings, "collection.num_steps": 5000}).collection
    assert [larger.episodes_of_unit(unit) for unit in range(3)] == [collection.episodes_of_unit(u) for u in range(3)]


def test_layout_puts_the_action_first():
    both, only = Layout.make("actions_observations", 4, 2), Layout.make("observations", 4, 2)
    assert (both.transition_dim, both.actions, both.observations) == (6, slice(0, 2), slice(2, 6))
    assert (only.transition_dim, only.actions, only.observations) == (4, slice(0, 0), slice(0, 4))
    assert (both.observation_columns((0, 3)), only.observation_columns((0, 3))) == ([2, 5], [0, 3])


def test_environment_arguments_default_to_none_of_their_own():
    first, second = EnvConfig(env_id="a"), EnvConfig(env_id="b")
    assert first.env_kwargs == {}
    assert first.env_kwargs is not second.env_kwargs


def test_plans_of_z_scores_are_not_clipped_to_one_standard_deviation():
    settings = {"windows.normalization": "gaussian"}
    refuse(lambda: with_overrides(CONFIG, settings), "diffusion.clip_denoised", "one standard deviation", "got True")
    assert not with_overrides(CONFIG, {**settings, "diffusion.clip_denoised": False}).diffusion.clip_denoised
    # A value function is no plan, so there is nothing to clip.
    with_overrides(CONFIG, {**settings, "training.objective": "value"})
