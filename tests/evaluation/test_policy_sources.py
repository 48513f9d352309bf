import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from diffplan.checkpoint import save_checkpoint
from diffplan.config import (
    Config,
    DiffusionConfig,
    EnvConfig,
    HorizonConfig,
    NetworkConfig,
    PlanningConfig,
    SamplingConfig,
    Sooner,
    WindowConfig,
    with_overrides,
)
from diffplan.data.windows.normalization import Normalizer
from diffplan.errors import CheckpointError, ConfigError
from diffplan.evaluation.policies import GoalCloned
from diffplan.evaluation.sources import find_policy
from diffplan.layout import Layout
from diffplan.planning.control.policy import PlanningPolicy
from diffplan.tasks.contracts import RolloutContext
from diffplan.tasks.registry import complete_env
from diffplan.training.state import TrainingState

ENV = complete_env(EnvConfig(env_id="diffplan/Maze2D-UMaze-v1"))
CONFIG = Config(
    env=ENV,
    windows=WindowConfig(min_horizon=8, max_horizon=8),
    network=NetworkConfig(dim=8, dim_mults=(1, 2), hidden_dim=16),
    diffusion=DiffusionConfig(num_diffusion_steps=4),
    planning=PlanningConfig(
        sampling=SamplingConfig(num_steps=2), horizon=HorizonConfig(min=8, max=8), replanning=Sooner(max_deviation=0.0)
    ),
)
CONTEXT = RolloutContext(ENV, [0], torch.Generator(), np.full(2, -1.0), np.full(2, 1.0))


def write(path, objective):
    config = replace(CONFIG, training=replace(CONFIG.training, objective=objective))
    if objective != "diffusion":
        columns = "actions_observations"
        config = replace(config, windows=replace(config.windows, min_horizon=2, max_horizon=2, columns=columns))
        config = replace(config, network=replace(config.network, dim_mults=(1,)))
    layout = Layout(4, 2 if objective != "diffusion" else 0)
    size = layout.transition_dim
    state = TrainingState(config, layout)
    save_checkpoint(
        path,
        config=config,
        layout=layout,
        step=0,
        normalizer=Normalizer(np.zeros(size, np.float32), np.ones(size, np.float32)),
        weights=state.average_weights(),
        dataset={},
        training_state=state.state_dict(),
    )
    return path


@pytest.mark.parametrize(("objective", "kind"), [("diffusion", PlanningPolicy), ("behavior_cloning", GoalCloned)])
def test_a_checkpoint_acts_as_it_was_trained_to(tmp_path, objective, kind):
    source = find_policy(write(tmp_path / "checkpoint", objective))
    assert source.env == ENV
    assert source.name == source.record["checkpoint"] == str(tmp_path / "checkpoint")
    load = pickle.loads(pickle.dumps(source.load))  # as an actor gets it
    assert isinstance(load()(CONTEXT), kind)


def test_settings_reach_the_planner_and_the_record(tmp_path):
    settings = with_overrides(CONFIG.planning, {"selection.num_candidates": 3})
    source = find_policy(write(tmp_path / "checkpoint", "diffusion"), settings=settings)
    assert source.record["planning"]["selection"]["num_candidates"] == 3
    policy = source.load()(CONTEXT)
    policy.reset(np.array([[1.0, 1.0, 0.0, 0.0]], dtype=np.float32), np.array([[1.0, 1.0]]))
    assert policy._episodes._planner.settings == settings


def test_a_relative_path_is_made_absolute(tmp_path, monkeypatch):
    write(tmp_path / "checkpoint", "diffusion")
    monkeypatch.chdir(tmp_path)
    assert find_policy("checkpoint").name == str(tmp_path / "checkpoint")


def test_what_cannot_act_is_refused_in_one_line(tmp_path):
    value = write(tmp_path / "value", "inverse_dynamics")
    clone = write(tmp_path / "clone", "behavior_cloning")
    for name, arguments, kind, message in [
        (tmp_path / "none", {}, CheckpointError, "expected a checkpoint"),
        (value, {}, CheckpointError, r"that can act .* got inverse_dynamics"),
        (clone, {"settings": CONFIG.planning}, ConfigError, "leave out --settings"),
        ("baseline:waypoint", {}, ConfigError, r"expected --env\.env_id"),
        ("baseline:wayponit", {"env": ENV}, ConfigError, "Did you mean 'waypoint'"),
        ("baseline:random", {"env": ENV, "settings": CONFIG.planning}, ConfigError, "leave out --settings"),
        ("pretrained:maze2d-lrage", {}, CheckpointError, "pretrained planner"),
    ]:
        with pytest.raises(kind, match=message) as caught:
            find_policy(name, **arguments)
        assert "\n" not in str(caught.value)
