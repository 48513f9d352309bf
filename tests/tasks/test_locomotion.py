"""What the task knows of its robots, and what it measures of an episode, for episodes whose numbers are known."""

import dataclasses

import gymnasium
import numpy as np
import pytest
import torch

from diffplan.behaviors.collection import UnitCollector, complete_collection
from diffplan.config import CollectionConfig, EnvConfig
from diffplan.diffusion.guidance import PlanBatch
from diffplan.diffusion.guide_expressions import parse_guide
from diffplan.environments import make_vector_env
from diffplan.errors import ConfigError
from diffplan.evaluation.protocol import apply_protocol, choose_protocols
from diffplan.evaluation.record import Record
from diffplan.evaluation.rollout import measure_episodes
from diffplan.evaluation.scores import normalize_score
from diffplan.layout import Layout
from diffplan.planning.constraints import Fixed
from diffplan.tasks.contracts import Ask, FinishedEpisodes
from diffplan.tasks.locomotion.metrics import METRICS
from diffplan.tasks.locomotion.presets import DATASETS
from diffplan.tasks.registry import complete_env, find_task, get_preset, list_task_presets, task_of

TASK = find_task("locomotion")
ROBOTS = ("Hopper", "Walker2d", "HalfCheetah")
IDS = [f"{namespace}{robot}-v{version}" for namespace in ("", "diffplan/") for robot in ROBOTS for version in (4, 5)]


@pytest.mark.parametrize("env_id", IDS)
def test_seconds_of_a_step_are_those_of_the_environment(env_id):
    env = complete_env(EnvConfig(env_id=env_id))
    single = gymnasium.make(gymnasium.spec(env_id))
    assert env == EnvConfig(env_id=env_id, task="locomotion", step_seconds=single.unwrapped.dt)
    assert complete_env(env) == env


def test_seconds_of_a_step_are_unknown_for_another_model_and_follow_the_frames():
    def seconds(**kwargs):
        return complete_env(EnvConfig(env_id="diffplan/Hopper-v5", env_kwargs=kwargs)).step_seconds

    assert seconds(frame_skip=2) == 0.004
    assert seconds(xml_file="/a/robot.xml") is None
    given = EnvConfig(env_id="Hopper-v5", step_seconds=0.1, task="locomotion")
    assert complete_env(given) == given
    assert complete_env(EnvConfig(env_id="Hopper-v3")).step_seconds is None


def test_presets_agree_with_what_the_task_fills_in():
    for preset in list_task_presets(TASK).values():
        bare = EnvConfig(env_id=preset.config.env.env_id)
        assert complete_env(bare).step_seconds == preset.config.env.step_seconds


@pytest.mark.parametrize("env_id", IDS)
def test_references_hold_for_the_episodes_and_the_reward_of_d4rl_alone(env_id):
    def references(**kwargs):
        return TASK.references(EnvConfig(env_id=env_id, env_kwargs=kwargs))

    expected = {
        "Hopper": (-20.272305, 3234.3),
        "Walker2d": (1.629008, 4592.3),
        "HalfCheetah": (-280.178953, 12135.0),
    }[env_id.removeprefix("diffplan/")[:-3]]
    assert references() == references(max_episode_steps=1000) == expected
    assert references(exclude_current_positions_from_observation=False) == expected
    assert references(max_episode_steps=500) is None
    for name in ("forward_reward_weight", "ctrl_cost_weight", "reset_noise_scale", "healthy_reward", "frame_skip"):
        assert references(**{name: 1}) is None


def test_other_environments_have_no_references():
    for env_id in ("Ant-v5", "Pendulum-v1", "Hopper-v3"):
        assert TASK.references(EnvConfig(env_id=env_id, task="locomotion")) is None


def run(env_id, num_steps, **kwargs):
    """The rewards of episodes under the same actions until they end, summed, and whether they fell."""
    env = make_vector_env(EnvConfig(env_id=env_id, env_kwargs=kwargs), 8)
    env.reset(seed=0)
    generator = np.random.default_rng(0)
    returns, running, fell = np.zeros(8), np.ones(8, dtype=bool), np.zeros(8, dtype=bool)
    for _ in range(num_steps):
        actions = generator.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        _, rewards, terminations, *_ = env.step(actions)
        returns += np.where(running, rewards, 0.0)
        fell |= running & terminations
        running &= ~terminations
    return returns, fell


@pytest.mark.parametrize("robot", ["Hopper", "HalfCheetah"])
def test_returns_of_v4_and_v5_differ_by_the_step_of_a_fall(robot):
    """As `get_reference_returns` says."""
    old, old_fell = run(f"diffplan/{robot}-v4", 120)
    new, new_fell = run(f"diffplan/{robot}-v5", 120)
    assert old_fell.tolist() == new_fell.tolist() == [robot == "Hopper"] * 8
    np.testing.assert_allclose(old - new, 1.0 * old_fell, atol=1e-9)


def test_random_actions_have_a_score_of_about_0():
    for env_id in ("diffplan/Hopper-v4", "diffplan/Walker2d-v4", "diffplan/HalfCheetah-v4"):
        env = EnvConfig(env_id=env_id)
        collection = CollectionConfig(num_steps=1, episodes_per_unit=12)
        returns = [episode.rewards.sum() for episode in UnitCollector(env, collection).collect(0)]
        assert abs(normalize_score(float(np.mean(returns)), TASK.references(env))) < 2


def test_protocols_name_the_data_and_change_no_environment():
    env = EnvConfig(env_id="diffplan/Hopper-v4")
    assert choose_protocols((), env) == ("medium", "medium-replay", "medium-expert")
    for name in choose_protocols((), env):
        assert apply_protocol(name, env) == env
    with pytest.raises(ConfigError, match="protocol"):
        apply_protocol("speed-4", env)


CHEETAH = EnvConfig(env_id="diffplan/HalfCheetah-v4")


def test_a_protocol_of_a_speed_pays_minus_the_distance_and_measures_it():
    env = apply_protocol("speed-6", CHEETAH)
    assert env.env_kwargs == {"target_speed": 6.0}
    assert TASK.references(env) is None
    record = Record(np.zeros((2, 17)))
    for speeds in ((5.0, 7.0), (6.0, 8.0)):
        observations = np.zeros((2, 17))
        observations[:, 8] = speeds
        record.add(np.arange(2), observations, np.zeros(2), np.zeros(2, dtype=bool))
    metrics = measure_episodes(TASK, FinishedEpisodes(env, record, np.zeros((2, 17)), None, np.zeros(2)))
    assert metrics["speed_error"] == [0.5, 1.5]


def test_a_speed_is_asked_of_the_position_or_else_of_the_velocities():
    assert TASK.ask(CHEETAH, np.zeros((2, 17)), {}) == Ask()
    env = apply_protocol("speed-4", CHEETAH)
    (guide,) = TASK.ask(env, np.zeros((2, 17)), {}).guides
    velocities = torch.tensor([[3.0, 5.0, 4.0], [2.0, 2.0, 2.0]])
    observations = torch.zeros(2, 3, 17)
    observations[:, :, 8] = velocities
    plans = PlanBatch(observations, observations, Layout(17), (), (), None)
    torch.testing.assert_close(parse_guide(guide).score(plans), torch.tensor([0.0, -2.0]))
    seen = dataclasses.replace(env, env_kwargs={**env.env_kwargs, "exclude_current_positions_from_observation": False})
    ask = TASK.ask(seen, np.zeros((2, 18)), {})
    assert ask == Ask(constraints=(Fixed([4.0], columns=(0,), step=-1, per_second=True),))


def test_the_policy_of_many_speeds_is_the_same_with_positions_in_the_observation():
    """And covers them: the fastest of a few episodes is more than twice as fast as the slowest."""
    config = get_preset("halfcheetah-speeds")
    collection = dataclasses.replace(config.collection, episodes_per_unit=6)
    env, collection = complete_collection(config.env, collection)
    with_positions = UnitCollector(env, collection).collect(0)
    behavior = collection.behavior.replace("&skip=1", "")
    env, collection = complete_collection(CHEETAH, dataclasses.replace(collection, behavior=behavior))
    without = UnitCollector(env, collection).collect(0)
    for whole, part in zip(with_positions, without, strict=True):
        np.testing.assert_array_equal(whole.observations[:, 1:], part.observations)
    speeds = np.diff(with_positions[0].observations[::100, 0]) / 5
    assert speeds.max() > 2 * max(speeds.min(), 1.0)


def test_published_scores_are_those_of_the_robot_and_the_data():
    def scores(env_id, protocol, **kwargs):
        return {s.method: s.score for s in TASK.published(EnvConfig(env_id=env_id, env_kwargs=kwargs), protocol)}

    diffuser = {
        (env_id, protocol): scores(env_id, protocol)["Diffuser"]
        for env_id in ("HalfCheetah-v4", "Hopper-v4", "Walker2d-v4")
        for protocol in DATASETS
    }
    assert np.mean(list(diffuser.values())) == pytest.approx(77.5, abs=0.05)  # the mean that the paper gives
    assert diffuser["Hopper-v4", "medium-replay"] == 93.6
    assert scores("diffplan/HalfCheetah-v5", "medium") == scores("HalfCheetah-v4", "medium")
    assert scores("Walker2d-v5", "medium") == {}  # another friction than that of the data
    assert scores("Hopper-v4", "medium", max_episode_steps=500) == scores("Hopper-v4", "random") == {}


@pytest.mark.parametrize("env_id", ["diffplan/Hopper-v5", "diffplan/Walker2d-v4", "HalfCheetah-v4"])
@pytest.mark.parametrize("excludes", [True, False])
def test_speed_is_read_from_observations_of_either_kind(env_id, excludes):
    env = EnvConfig(env_id=env_id, env_kwargs={"exclude_current_positions_from_observation": excludes})
    batch = make_vector_env(env, 3)
    starts, _ = batch.reset(seed=0)
    record, lengths = Record(starts), [12, 5, 8]
    generator, places = np.random.default_rng(0), []
    for step in range(max(lengths)):
        actions = generator.uniform(-1, 1, batch.action_space.shape).astype(np.float32)
        observations, rewards, _, _, infos = batch.step(actions)
        places.append(infos["x_position"])
        envs = np.flatnonzero(step < np.array(lengths))
        record.add(envs, observations[envs], rewards[envs], np.zeros(len(envs), dtype=bool))
    metrics = measure_episodes(TASK, FinishedEpisodes(env, record, starts, None, np.zeros(3)))
    assert metrics.keys() == METRICS.keys()
    assert metrics["speed_error"] == [None] * 3
    assert metrics["survived"] == [0.012, 0.005, 0.008]
    seconds = complete_env(env).step_seconds
    assert seconds is not None
    for i, length in enumerate(lengths):
        ways = (places[length - 1][i] - places[0][i]) / (seconds * (length - 1))
        assert metrics["forward_speed"][i] == pytest.approx(ways, abs=0.25)
        assert metrics["forward_speed"][i] == pytest.approx(
            np.mean([record.observations[t + 1, i, starts.shape[1] // 2] for t in range(length)])
        )


def test_what_is_not_known_of_an_environment_is_not_measured():
    env = EnvConfig(env_id="Pendulum-v1", env_kwargs={"max_episode_steps": 4}, task="locomotion")
    record = Record(np.zeros((1, 3)))
    record.add(np.array([0]), np.zeros((1, 3)), np.zeros(1), np.zeros(1, dtype=bool))
    metrics = measure_episodes(task_of(env), FinishedEpisodes(env, record, np.zeros((1, 3)), None, np.zeros(1)))
    assert metrics == {"forward_speed": [None], "survived": [0.25], "speed_error": [None]}
