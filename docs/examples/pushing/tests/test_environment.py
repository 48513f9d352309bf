"""What an environment must keep for the platform: run by `pytest` in the directory of this package."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from diffplan.behaviors.collection import UnitCollector
from diffplan.config import CollectionConfig
from diffplan.evaluation.protocol import apply_protocol
from diffplan.evaluation.rollout import evaluate_episodes
from pushing import ENV_ID
from pushing.environment import ACTION_HIGH, ACTION_LOW, HOVER, PUSHER_VELOCITY, draw_start, move
from pushing.metrics import EXPERT_RETURNS
from pushing.task import POLICIES, ROLES, TASK

ENV = replace(ROLES, task="pushing.task:TASK")


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_it_is_a_gymnasium_environment_that_follows_from_its_seed() -> None:
    env = gymnasium.make(ENV_ID, render_mode="rgb_array")
    check_env(env.unwrapped)
    first, again, other = (env.reset(seed=seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    image = env.render()
    assert image.shape == (240, 480, 3)
    assert len(np.unique(image.reshape(-1, 3), axis=0)) == 4  # background, target, block, pusher


def test_a_batch_equals_single_environments_to_the_last_bit() -> None:
    batch = gymnasium.make_vec(ENV_ID, 3, autoreset_mode=AutoresetMode.DISABLED, reach="far")
    singles = [gymnasium.make(ENV_ID, reach="far") for _ in range(3)]
    observations, infos = batch.reset(seed=[5, 6, 7])
    starts = [env.reset(seed=seed) for env, seed in zip(singles, (5, 6, 7), strict=True)]
    np.testing.assert_array_equal(observations, [observation for observation, _ in starts])
    np.testing.assert_array_equal(infos["goal"], [info["goal"] for _, info in starts])
    actions = np.random.default_rng(0).uniform(-1, 3, (120, 3, 3))  # beyond the bounds too
    for step, rows in enumerate(actions):
        stepped = batch.step(rows)
        alone = [env.step(row) for env, row in zip(singles, rows, strict=True)]
        for number in range(4):
            np.testing.assert_array_equal(stepped[number], [values[number] for values in alone])
        assert stepped[3].all() == (step == 119)
    stay = batch.step_some(np.array([1]), actions[0, :1])[0]
    assert stay.shape == (1, 12)


def test_a_goal_may_be_given_and_must_lie_in_the_box() -> None:
    env = gymnasium.make(ENV_ID)
    assert env.reset(options={"goal": [0.5, 0.0, -0.5]})[1]["goal"].tolist() == [0.5, 0.0, -0.5]
    with pytest.raises(ValueError, match="goal: expected 3 numbers"):
        env.reset(options={"goal": [0.0, 0.0, 1.5]})


def test_actions_act_as_the_bounds_say() -> None:
    start, _ = draw_start(np.random.default_rng(0), "any")
    velocity = {action: move(start, np.full(3, action))[PUSHER_VELOCITY] for action in (ACTION_LOW, HOVER, ACTION_HIGH)}
    assert (velocity[HOVER] == 0).all()
    np.testing.assert_allclose(velocity[ACTION_LOW], -velocity[ACTION_HIGH])
    np.testing.assert_array_equal(move(start, np.full(3, 9.0)), move(start, np.full(3, ACTION_HIGH)))


def test_data_of_an_episode_do_not_depend_on_what_it_is_collected_with() -> None:
    together = CollectionConfig(behavior="scripted", episode_steps=60, episodes_per_unit=4)
    episodes = UnitCollector(ENV, together).collect(0)
    alone = UnitCollector(ENV, replace(together, episodes_per_unit=1)).collect(2)[0]
    np.testing.assert_array_equal(episodes[2].observations, alone.observations)
    np.testing.assert_array_equal(episodes[2].actions, alone.actions)
    assert episodes[2].columns["goal"].shape == (60, 3)
    actions = np.concatenate([episode.actions for episode in episodes])
    assert actions.min() == np.float32(ACTION_LOW)
    assert actions.max() == ACTION_HIGH


@pytest.mark.parametrize("protocol", TASK.protocols)
def test_the_scripted_policy_scores_about_100_and_is_measured(protocol: str) -> None:
    results, _ = evaluate_episodes(POLICIES["scripted"], apply_protocol(protocol, ENV), range(50), seed=0)
    assert all(result.success for result in results)
    assert np.mean([result.undiscounted_return for result in results]) == pytest.approx(EXPERT_RETURNS[protocol], abs=4)
    assert np.mean([result.score for result in results]) == pytest.approx(100, abs=5)
    assert all(set(result.metrics) == set(TASK.metrics) for result in results)
    assert max(result.metrics["final_distance"] or 0.0 for result in results) < 0.15
    assert 0.1 < np.mean([result.metrics["contact_share"] or 0.0 for result in results]) < 0.6
