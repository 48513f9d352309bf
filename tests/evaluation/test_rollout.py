import dataclasses
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch

from diffplan.behaviors.random import RandomBehavior
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
from diffplan.diffusion.denoiser import Denoiser
from diffplan.environments import make_vector_env, restart_ended
from diffplan.errors import ConfigError
from diffplan.evaluation.policies import list_scripted
from diffplan.evaluation.protocol import apply_protocol
from diffplan.evaluation.rollout import evaluate_episodes
from diffplan.layout import Layout
from diffplan.networks.temporal_unet import TemporalUnet
from diffplan.planning.planner import Planner
from diffplan.seeding import Stream, make_seed
from diffplan.tasks.registry import complete_env, task_of

ENV = complete_env(EnvConfig(env_id="diffplan/Maze2D-UMaze-v1"))
PENDULUM = EnvConfig(env_id="Pendulum-v1")
CONFIG = Config(
    env=ENV,
    windows=WindowConfig(min_horizon=8, max_horizon=8),
    network=NetworkConfig(dim=8, dim_mults=(1, 2)),
    diffusion=DiffusionConfig(num_diffusion_steps=4),
    planning=PlanningConfig(
        sampling=SamplingConfig(num_steps=2), horizon=HorizonConfig(min=8, max=8), replanning=Sooner(max_deviation=0.0)
    ),
)


def make_planner(**settings):
    torch.manual_seed(0)
    denoiser = Denoiser.make(TemporalUnet(4, CONFIG.network), CONFIG.diffusion)
    normalizer = Normalizer(np.float32([2, 2, 0, 0]), np.float32([2, 2, 5, 5]))
    return Planner(CONFIG, Layout(4), denoiser, normalizer, with_overrides(CONFIG.planning, settings))


def without_time(result):
    return replace(result, plan_seconds=0.0)


@pytest.fixture(scope="module")
def block():
    """Ten episodes of each of the two protocols, all recorded."""
    planner = make_planner()
    return {
        name: evaluate_episodes(planner, apply_protocol(name, ENV), range(10), seed=3, num_recorded=10)
        for name in ("maze2d", "multi2d")
    }


@pytest.mark.parametrize("protocol", ["maze2d", "multi2d"])
def test_scores_follow_from_the_recorded_observations(block, protocol):
    results, recorded = block[protocol]
    assert [result.episode for result in results] == list(range(10))
    assert [episode.result for episode in recorded] == results
    for result, episode in zip(results, recorded, strict=True):
        assert result.length == 300  # the limit of UMaze
        assert episode.observations.shape == (301, 4)
        np.testing.assert_allclose(episode.observations[0], result.start, rtol=1e-6)
        distances = np.linalg.norm(episode.observations[1:, :2] - np.array(result.goal), axis=1)
        near = distances <= 0.5
        assert result.undiscounted_return == near.sum()
        assert result.score == pytest.approx(100 * (near.sum() - 23.85) / (161.86 - 23.85))
        assert result.success == near.any()
        assert result.time_to_goal_steps == (int(near.argmax()) + 1 if near.any() else None)
        assert (result.horizon, result.num_plans) == (8, 1)
        assert result.plan_speed_error == episode.plan.speed_error
        np.testing.assert_array_equal(episode.plan.observations[0], episode.observations[0])
        np.testing.assert_allclose(episode.plan.observations[-1, :2], result.goal, rtol=1e-6)
    assert {result.success for result in results} == {True, False}


def test_one_protocol_keeps_the_goal_and_the_other_draws_it(block):
    assert {tuple(result.goal) for result in block["maze2d"][0]} == {(1.0, 1.0)}
    assert len({tuple(result.goal) for result in block["multi2d"][0]}) == 10
    starts = [[tuple(result.start) for result in results] for results, _ in block.values()]
    assert starts[0] == starts[1]
    assert len(set(starts[0])) == 10


def test_same_seed_is_the_same_evaluation(block):
    results, _ = evaluate_episodes(make_planner(), apply_protocol("multi2d", ENV), range(10), seed=3)
    assert [without_time(r) for r in results] == [without_time(r) for r in block["multi2d"][0]]


def test_starts_and_goals_do_not_depend_on_the_block_they_are_run_in(block):
    results, _ = evaluate_episodes(make_planner(), apply_protocol("multi2d", ENV), [7, 2], seed=3)
    for result, index in zip(results, (7, 2), strict=True):
        whole = block["multi2d"][0][index]
        assert (result.episode, result.seed) == (whole.episode, whole.seed)
        assert (result.start, result.goal) == (whole.start, whole.goal)


def test_settings_are_never_tuned_on_episodes_that_are_evaluated(block):
    env = apply_protocol("multi2d", ENV)
    tuned, _ = evaluate_episodes(make_planner(), env, range(10), seed=3, stream=Stream.TUNING)
    other, _ = evaluate_episodes(make_planner(), env, range(10), seed=4)
    evaluated = block["multi2d"][0]
    for field in ("seed", "start", "goal"):
        sets = [{str(getattr(result, field)) for result in results} for results in (evaluated, tuned, other)]
        assert len(set.union(*sets)) == 30


def test_given_goal_is_used_in_every_episode():
    results, recorded = evaluate_episodes(
        make_planner(), apply_protocol("multi2d", ENV), range(3), seed=0, goal=(3.05, 2.9), num_recorded=1
    )
    assert [result.goal for result in results] == [[3.05, 2.9]] * 3
    assert len(recorded) == 1
    np.testing.assert_allclose(recorded[0].plan.observations[-1, :2], [3.05, 2.9], rtol=1e-6)


@pytest.mark.parametrize("goal", [(2.0, 1.0), (100.0, 1.0), (1.0,), (1.0, 1.0, 1.0), (float("nan"), 1.0)])
def test_impossible_goal_is_a_config_error_of_one_line(goal):
    with pytest.raises(ConfigError, match="reset option 'goal'") as caught:
        evaluate_episodes(make_planner(), ENV, range(2), seed=0, goal=goal)
    assert "\n" not in str(caught.value)


def act_randomly(env):
    return list_scripted(task_of(env))["random"]


def test_episodes_without_goal_and_success_are_scored_by_their_return():
    """Pendulum says neither in its infos; the sum of its rewards, step by step in a single environment."""
    results, recorded = evaluate_episodes(act_randomly(PENDULUM), PENDULUM, range(3), seed=7, num_recorded=1)
    for result in results:
        env = gymnasium.make("Pendulum-v1")
        observation, _ = env.reset(seed=result.seed)
        assert result.start == pytest.approx(observation.tolist())
        behavior = RandomBehavior(np.full(1, -2.0), np.full(1, 2.0))
        behavior.reset(observation[None], [np.random.default_rng(make_seed(7, Stream.EVALUATION, result.episode, 2))])
        total, truncated = 0.0, False
        while not truncated:
            observation, reward, _, truncated, _ = env.step(behavior.act(observation[None])[0])
            total += reward
        env.close()
        assert result.undiscounted_return == result.score == pytest.approx(total, rel=1e-6)
        assert result.undiscounted_return < 0
        assert (result.goal, result.success, result.time_to_goal_steps) == (None, None, None)
        assert (result.length, result.horizon, result.num_plans, result.metrics) == (200, None, 0, {})
    assert len({result.undiscounted_return for result in results}) == 3
    assert recorded[0].plan is None
    assert recorded[0].observations.shape == (201, 3)


def test_a_goal_where_there_are_none_is_one_clear_line():
    with pytest.raises(ConfigError, match=r"goal: expected none, .*Pendulum-v1 have no goal, got \[1.0\]") as caught:
        evaluate_episodes(act_randomly(PENDULUM), PENDULUM, range(2), seed=0, goal=(1.0,))
    assert "\n" not in str(caught.value)


def test_an_environment_that_takes_no_notice_of_the_goal_is_one_clear_line(countdown):
    with pytest.raises(ConfigError, match=r"reset option 'goal', got .*instead of \[1.0, 2.0\]") as caught:
        evaluate_episodes(act_randomly(countdown), countdown, range(2), seed=0, goal=(1.0, 2.0))
    assert "\n" not in str(caught.value)
    assert len(evaluate_episodes(act_randomly(countdown), countdown, range(2), seed=0, goal=(100.0, 100.0))[0]) == 2


@pytest.mark.parametrize("goal", [[3.0, 4.0], (3.0, 4.0), np.array([3, 4])])
def test_goals_of_infos_may_be_any_vector_of_numbers(countdown, monkeypatch, goal):
    monkeypatch.setattr(Countdown, "goal", goal)
    results, _ = evaluate_episodes(act_randomly(countdown), countdown, range(2), seed=0)
    assert [result.goal for result in results] == [[3.0, 4.0]] * 2


@pytest.mark.parametrize("goal", [np.array([np.nan, 1.0]), "north", 3.0, {"x": 1.0}, np.zeros((20, 20))])
def test_goals_of_infos_that_are_no_vectors_are_one_clear_line(countdown, monkeypatch, goal):
    monkeypatch.setattr(Countdown, "goal", goal)
    with pytest.raises(ConfigError, match="EvaluatedCountdown-v0': expected infos with a goal") as caught:
        evaluate_episodes(act_randomly(countdown), countdown, range(2), seed=0)
    assert "\n" not in str(caught.value)


def test_nothing_is_recorded_unless_asked_for():
    assert evaluate_episodes(make_planner(), ENV, range(1), seed=0)[1] == []


class Countdown(gymnasium.Env):
    """Ends by itself after as many steps as its seed's first draw says; observations are (step, length, 0, 0)."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float64)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    goal = np.array([100.0, 100.0])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.length, self.now = int(self.np_random.integers(1, 60)), 0
        return self._observation(), self._info()

    def step(self, action):
        self.now += 1
        return self._observation(), 1.0, self.now == self.length, False, self._info()

    def _observation(self):
        return np.array([self.now, self.length, 0.0, 0.0])

    def _info(self):
        return {"goal": self.goal, "success": self.now >= 20}


@pytest.fixture
def countdown():
    gymnasium.register("diffplan-tests/EvaluatedCountdown-v0", entry_point=Countdown, max_episode_steps=45)
    yield EnvConfig(env_id="diffplan-tests/EvaluatedCountdown-v0")
    del gymnasium.registry["diffplan-tests/EvaluatedCountdown-v0"]


def test_episodes_that_end_at_different_times_count_up_to_their_own_end(countdown):
    planner = make_planner(**{"replanning.max_deviation": 1e-6})  # plans again as often as it may, every 10 steps
    results, recorded = evaluate_episodes(planner, countdown, range(20), seed=0, num_recorded=20)
    for result, episode in zip(results, recorded, strict=True):
        drawn = int(np.random.Generator(np.random.PCG64(result.seed)).integers(1, 60))
        length = min(drawn, 45)
        assert result.length == result.undiscounted_return == length
        assert result.score == length
        assert result.time_to_goal_steps == (20 if length >= 20 else None)
        assert result.success == (length >= 20)
        assert result.num_plans == 1 + (length - 1) // 10
        assert episode.observations[:, 0].tolist() == list(range(length + 1))
        assert (episode.observations[:, 1] == drawn).all()
    assert len({result.length for result in results}) > 5
    assert {result.success for result in results} == {True, False}


def test_restarting_leaves_running_episodes_alone(countdown):
    env = make_vector_env(countdown, 3)
    before, _ = env.reset(seed=[4, 5, 6])
    untouched = restart_ended(env, before, np.zeros(3, dtype=bool))
    assert untouched is before
    after = restart_ended(env, before, np.array([False, True, False]))
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])
    assert after[1, 1] != before[1, 1]
    env.close()


def test_results_are_plain_values():
    (result,), _ = evaluate_episodes(make_planner(), ENV, range(1), seed=0)
    for value in dataclasses.asdict(result).values():
        assert type(value) in (int, float, bool, list, dict, type(None))
    assert {type(value) for value in result.metrics.values()} <= {float, type(None)}
