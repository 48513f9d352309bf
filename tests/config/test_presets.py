"""Presets: the published ones against the numbers of the paper and its code release, all against their own checks."""

import dataclasses
import re

import pytest

from diffplan.behaviors.collection import make_manifest
from diffplan.checkpoint import load_checkpoint
from diffplan.config import (
    Actions,
    Config,
    EnvConfig,
    HorizonConfig,
    Receding,
    Sooner,
    Tracking,
    config_from_json,
    config_to_json,
)
from diffplan.environments import make_env
from diffplan.errors import ConfigError
from diffplan.tasks.pretrained import list_pretrained
from diffplan.tasks.registry import DEFAULT_TASK, find_preset, get_preset, list_presets, task_of
from diffplan.training.cost import count_parameters

DATASETS = ("medium", "medium-replay", "medium-expert")
MAZES = [f"maze2d-{maze}" for maze in ("umaze", "medium", "large")]
LOCOMOTION = [f"{robot}-{dataset}" for robot in ("hopper", "walker2d", "halfcheetah") for dataset in DATASETS]
ROWS = [*MAZES, *LOCOMOTION, "stacking"]

# horizon, stride, diffusion steps, dim, dim_mults, attention, training steps, learning rate, clip, prediction
TRAINED = {
    "maze2d-umaze": (128, 1, 64, 32, (1, 4, 8), False, 2_000_000, 2e-4, True, "clean"),
    "maze2d-medium": (256, 1, 256, 32, (1, 4, 8), False, 2_000_000, 2e-4, True, "clean"),
    "maze2d-large": (384, 1, 256, 32, (1, 4, 8), False, 2_000_000, 2e-4, True, "clean"),
    **{
        f"{robot}-{dataset}": (32, 1, 20, 32, (1, 2, 4, 8), False, 1_000_000, 2e-4, False, "clean")
        for robot in ("hopper", "walker2d")
        for dataset in DATASETS
    },
    **{
        f"halfcheetah-{dataset}": (4, 1, 20, 32, (1, 4, 8), True, 1_000_000, 2e-4, False, "clean")
        for dataset in DATASETS
    },
    "stacking": (128, 2, 1000, 128, (1, 2, 4, 8), True, 700_000, 2e-5, True, "noise"),
}
# columns, goal columns, normalization, padding, weight of the first action
DATA = {
    **dict.fromkeys(MAZES, ("actions_observations", (0, 1, 2, 3), "limits", "skip", 1.0)),
    **dict.fromkeys(LOCOMOTION, ("actions_observations", (), "gaussian", "end", 10.0)),
    "stacking": ("observations", (), "limits", "skip", 1.0),
}
# candidates, scale of the guide, its steps, the diffusion step below which it rests
GUIDED = {
    **{f"{robot}-{dataset}": (64, 0.1, 2, 2) for robot in ("hopper", "walker2d") for dataset in DATASETS},
    **{f"halfcheetah-{dataset}": (64, 0.001, 2, 4) for dataset in DATASETS},
    "hopper-medium-expert": (64, 0.0001, 2, 4),
}
PARAMETERS = {
    "maze2d-umaze": 3_682_118,
    "hopper-medium": 3_956_302,
    "walker2d-medium": 3_958_327,
    "halfcheetah-medium": 4_114_423,
}


def test_every_published_row_has_its_preset_and_a_small_one():
    presets = set(list_presets())
    assert {f"janner-{row}" for row in ROWS} == {name for name in presets if name.startswith("janner-")}
    assert set(ROWS) <= presets
    assert len(ROWS) == 13


@pytest.mark.parametrize("row", ROWS)
def test_published_networks_diffusion_and_training(row):
    config = get_preset(f"janner-{row}")
    horizon, stride, num_diffusion_steps, dim, mults, attention, num_steps, rate, clip, prediction = TRAINED[row]
    assert config.windows.horizons == config.planning.horizon.tried == (horizon,)
    assert config.windows.stride == stride
    network, diffusion, training = config.network, config.diffusion, config.training
    assert (network.kind, network.dim, network.dim_mults, network.attention) == ("unet", dim, mults, attention)
    assert (network.condition, diffusion.snr_weighting) == ("none", "none")
    assert (diffusion.num_diffusion_steps, diffusion.schedule) == (num_diffusion_steps, "cosine")
    assert (diffusion.prediction, diffusion.clip_denoised) == (prediction, clip)
    assert (training.num_steps, training.batch_size, training.accumulation_steps) == (num_steps, 32, 2)
    assert (training.optimizer, training.learning_rate, training.lr_schedule) == ("adam", rate, "constant")
    assert (training.weight_decay, training.num_warmup_steps, training.max_gradient_norm) == (0.0, 0, None)
    assert (training.ema_decay, training.ema_start_step, training.ema_interval) == (0.995, 2_000, 10)
    assert (training.precision, training.validation_fraction) == ("float32", 0.0)


@pytest.mark.parametrize("row", ROWS)
def test_published_data_and_loss(row):
    config = get_preset(f"janner-{row}")
    columns, goal_columns, normalization, padding, action_weight = DATA[row]
    windows, diffusion = config.windows, config.diffusion
    assert (windows.columns, windows.goal_columns) == (columns, goal_columns)
    assert (windows.normalization, windows.padding) == (normalization, padding)
    assert (diffusion.action_weight, diffusion.loss_discount, diffusion.column_weights) == (action_weight, 1.0, None)


@pytest.mark.parametrize("row", ROWS)
def test_published_planning(row):
    planning = get_preset(f"janner-{row}").planning
    assert (planning.sampling.sampler, planning.sampling.num_steps) == ("ddpm", TRAINED[row][2])
    assert (planning.sampling.temperature, planning.sampling.num_repeats) == (1.0, 1)
    guided = (
        planning.selection.num_candidates,
        planning.guidance.scale,
        planning.guidance.num_steps,
        planning.guidance.stop_step,
    )
    if row in GUIDED:
        assert guided == GUIDED[row]
        assert (planning.guidance.target, planning.guidance.scaling) == ("noisy", "variance")
        assert planning.selection.rule == "guide"
        assert (planning.controller, planning.replanning) == (Actions(), Receding(interval=1, warm_start=0.0))
    else:
        assert guided[:2] == (1, 0.0)
    if row in MAZES:
        assert planning.controller == Tracking(position_gain=1.0, velocity_gain=1.0)
        assert planning.replanning == Sooner(interval=0)


@pytest.mark.parametrize("row", PARAMETERS)
def test_published_networks_have_as_many_weights(row):
    preset = find_preset(f"janner-{row}")
    assert count_parameters(preset.config.network, preset.layout.transition_dim) == PARAMETERS[row]


@pytest.mark.parametrize("name", [name for name in list_presets() if name != DEFAULT_TASK])
def test_presets_are_whole(name):
    preset = find_preset(name)
    config = preset.config
    assert config_from_json(Config, config_to_json(config)) == config
    for section in dataclasses.fields(config):
        part = getattr(config, section.name)
        assert dataclasses.replace(part) == part  # which runs its checks again
    assert preset.layout.observation_dim == preset.observation_dim
    for columns in (config.env.position_columns, config.env.velocity_columns, config.goal_columns):
        assert all(0 <= column < preset.observation_dim for column in columns)
    assert config.planning.sampling.num_steps <= config.diffusion.num_diffusion_steps
    if config.planning.controller == "actions":
        assert preset.layout.action_dim == preset.action_dim
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
    assert task_of(config.env).presets[name].config == dataclasses.replace(
        config, env=dataclasses.replace(config.env, task=None)
    )


def test_speed_errors_are_limited_only_in_the_units_of_the_environment():
    assert HorizonConfig().max_speed_error is None
    limits = {name: get_preset(name).planning.horizon.max_speed_error for name in list_presets()}
    of_mazes = {name: limit for name, limit in limits.items() if "maze2d" in name}
    assert {name: limit for name, limit in of_mazes.items() if limit != 10.0} == {
        "maze2d-medium": 8.0,
        "maze2d-large": 8.0,
    }
    assert {limit for name, limit in limits.items() if name not in of_mazes} == {None}
    for name in (name for name in list_pretrained() if name.startswith("maze2d")):
        assert load_checkpoint(f"pretrained:{name}").config.planning.horizon.max_speed_error > 8.0


def test_the_generic_preset_leaves_to_the_environment_what_it_cannot_know():
    preset = find_preset(DEFAULT_TASK)
    config = preset.config
    assert (preset.observation_dim, preset.action_dim, preset.layout) == (None, None, None)
    assert config.env == EnvConfig(env_id="", task=DEFAULT_TASK)
    assert (config.collection.behavior, config.collection.episode_steps) == ("random", None)
    assert (config.search.protocols, config.search.objective) == ((), None)
    assert config_from_json(Config, config_to_json(config)) == config
    assert config.planning.sampling.num_steps <= config.diffusion.num_diffusion_steps
    with pytest.raises(ConfigError, match=r"give --env\.env_id ID"):
        make_env(config.env)


def show_env(env):
    return f"{env.env_id} {env.env_kwargs or ''}".strip()


@pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")
@pytest.mark.parametrize("shown", sorted({show_env(get_preset(name).env) for name in list_presets()} - {""}))
def test_sizes_and_seconds_are_those_of_the_environment(shown, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where MuJoCo leaves a log of its warnings
    presets = [find_preset(name) for name in list_presets() if show_env(get_preset(name).env) == shown]
    env_id = presets[0].config.env.env_id
    assert len({(preset.observation_dim, preset.action_dim, preset.config.env.step_seconds) for preset in presets}) == 1
    preset = presets[0]
    env = make_env(preset.config.env)
    assert env.observation_space.shape == (preset.observation_dim,)
    assert env.action_space.shape == (preset.action_dim,)
    if not env_id.startswith("diffplan/"):
        assert env.get_wrapper_attr("dt") == pytest.approx(preset.config.env.step_seconds)
    env.close()


@pytest.mark.parametrize("row", ROWS)
def test_small_presets_keep_the_task_and_cost_less(row):
    small, published = find_preset(row), find_preset(f"janner-{row}")
    if row == "stacking":  # one scene, but whole moves and positions of the cup make plans of 9 steps
        assert small.config.env.env_id == published.config.env.env_id.replace("-Fine", "")
        assert small.config.env.env_kwargs == {**published.config.env.env_kwargs, "space": "cup"}
    else:
        assert small.config.env == published.config.env
        assert (small.observation_dim, small.action_dim) == (published.observation_dim, published.action_dim)
    assert small.config.search.protocols == published.config.search.protocols
    assert small.config.training.num_steps <= published.config.training.num_steps / 50
    weights = [
        count_parameters(p.config.network, p.layout.transition_dim, p.config.windows.max_horizon)
        for p in (small, published)
    ]
    assert weights[0] < weights[1] / 3
    if row in MAZES:
        assert small.config.diffusion.num_diffusion_steps < published.config.diffusion.num_diffusion_steps
    else:
        assert small.config.planning.sampling.num_steps < published.config.planning.sampling.num_steps / 5
        assert small.config.goal_columns == published.config.goal_columns == ()


@pytest.mark.parametrize("row", LOCOMOTION)
def test_locomotion_data_have_policies_that_come_with_the_task(row):
    """Each dataset is made by one command, and an environment and its policies agree."""
    config = find_preset(row).config
    if row.endswith("replay"):
        assert config.collection.behavior == "random"  # nothing here collects it
        return
    manifest = make_manifest(config.env, config.collection)
    hashes = manifest.source["policy_files"]
    assert set(hashes) == {part.split(":")[1].split("?")[0] for part in config.collection.behavior.split(",")}
    assert all(name.endswith(row.split("-")[0]) for name in hashes)


def test_unknown_preset_suggests():
    with pytest.raises(ConfigError, match="got 'janner-hoper-medium'; did you mean 'janner-hopper-medium'"):
        find_preset("janner-hoper-medium")
