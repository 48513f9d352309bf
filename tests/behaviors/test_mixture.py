import numpy as np
import pytest

from diffplan.behaviors.mixture import MixtureBehavior
from diffplan.behaviors.registry import list_columns, make_behavior, parse_mixture
from diffplan.config import EnvConfig
from diffplan.errors import ConfigError
from diffplan.tasks.contracts import BehaviorContext
from diffplan.tasks.registry import find_task
from diffplan.tasks.task import Task
from diffplan_envs.maze import make_maze

MAZE2D = find_task("maze2d")


def make_context(env_id="diffplan/Maze2D-UMaze-v1"):
    env = EnvConfig(env_id=env_id, task="maze2d")
    return BehaviorContext(env, np.full(2, -1.0), np.full(2, 1.0), action_noise=0.5, max_goal_steps=100)


def parse(text):
    return parse_mixture(text, MAZE2D)


def test_weights_are_normalised_to_probabilities():
    assert parse("waypoint") == {"waypoint": 1.0}
    assert parse(" waypoint:3 , random:1 ") == {"waypoint": 0.75, "random": 0.25}
    assert parse("waypoint,random") == {"waypoint": 0.5, "random": 0.5}


@pytest.mark.parametrize(
    "text",
    [
        "waypoint:0,random:1",
        "waypoint:-1",
        "waypoint:nan",
        "waypoint:inf,random:1",
        "waypoint:much",
        "waypoint:0.5,waypoint:0.5",
    ],
)
def test_bad_weight_is_refused_in_one_line(text):
    with pytest.raises(ConfigError, match="positive weights") as caught:
        parse(text)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_behavior_is_answered_with_the_nearest_name():
    with pytest.raises(
        ConfigError, match=r"expected one of noisy_waypoint, random, waypoint; .*'waypiont'.*'waypoint'\?"
    ):
        parse("random:0.5,waypiont:0.5")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("my_module:drive:0.8,random:0.2", {"my_module:drive": 0.8, "random": 0.2}),
        ("my_module:drive", {"my_module:drive": 1.0}),
        ("my_package.module:Class.attribute:3,random", {"my_package.module:Class.attribute": 0.75, "random": 0.25}),
        ("policy:runs/expert.npz", {"policy:runs/expert.npz": 1.0}),
        (
            "policy:runs/expert.npz:1,policy:/abs/other.npz:3",
            {"policy:runs/expert.npz": 0.25, "policy:/abs/other.npz": 0.75},
        ),
    ],
)
def test_a_trailing_number_is_a_weight_whatever_stands_before_it(text, expected):
    assert parse_mixture(text, Task(name="any")) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text", ["my_module:drive:0", "my_module:drive:-1,random", "my_module:drive:nan", "policy:a.npz:0"]
)
def test_bad_weights_of_import_paths_and_files_are_refused(text):
    with pytest.raises(ConfigError, match="positive weights"):
        parse_mixture(text, Task(name="any"))


@pytest.mark.parametrize("text", ["", ",", "waypoint,"])
def test_empty_name_is_refused(text):
    with pytest.raises(ConfigError, match="expected one of"):
        parse(text)


def test_waypoint_without_a_maze_is_refused():
    with pytest.raises(ConfigError, match="noisy_waypoint: expected an environment with a maze, got Pendulum-v1"):
        make_behavior("random,noisy_waypoint", make_context("Pendulum-v1"))


class Constant:
    """Acts the same number all the time."""

    def __init__(self, value):
        self.value = value

    def reset(self, observations, generators):
        self.num_envs = len(observations)

    def act(self, observations):
        assert len(observations) == self.num_envs
        return np.full((self.num_envs, 1), self.value, dtype=np.float32)

    def columns(self):
        return {}


def test_components_are_chosen_in_proportion_to_their_weights():
    mixture = MixtureBehavior([Constant(0), Constant(1), Constant(2)], [0.5, 0.2, 0.3], {})
    observations = np.zeros((6000, 4))
    mixture.reset(observations, [np.random.default_rng(i) for i in range(6000)])
    actions = mixture.act(observations)[:, 0]
    shares = [(actions == v).mean() for v in range(3)]
    np.testing.assert_allclose(shares, [0.5, 0.2, 0.3], atol=0.02)
    np.testing.assert_array_equal(mixture.act(observations)[:, 0], actions)  # for the whole episode


def reset_mixture(text, num_envs):
    behavior = make_behavior(text, make_context())
    observations = np.tile([1.0, 1.0, 0.0, 0.0], (num_envs, 1))
    behavior.reset(observations, [np.random.default_rng([7, i]) for i in range(num_envs)])
    return behavior, behavior.act(observations)


def test_goal_is_nan_in_exactly_the_episodes_that_pursue_none():
    behavior, actions = reset_mixture("waypoint:0.6,random:0.4", 400)
    goals = behavior.columns()["goal"]
    missing = np.isnan(goals)
    assert (missing.all(axis=1) == missing.any(axis=1)).all()
    assert missing[:, 0].mean() == pytest.approx(0.4, abs=0.08)
    free = {tuple(c) for c in make_maze("umaze").free_cells}
    assert {tuple(g) for g in goals[~missing[:, 0]].astype(int)} <= free
    # The controller saturates or aims at the same waypoint; random actions do neither.
    assert (np.abs(actions[missing[:, 0]]) < 1).all()


def test_columns_are_complete_even_if_no_episode_of_the_batch_has_a_goal():
    text = "waypoint:0.000001,random:1"
    behavior, _ = reset_mixture(text, 3)
    columns = behavior.columns()
    assert {name: values.shape[1] for name, values in columns.items()} == list_columns(text, MAZE2D) == {"goal": 2}
    assert np.isnan(columns["goal"]).all()
    assert len(columns["goal"]) == 3


def test_choice_of_an_episode_does_not_depend_on_the_batch():
    many, _ = reset_mixture("waypoint:0.5,random:0.5", 20)
    few, _ = reset_mixture("waypoint:0.5,random:0.5", 5)
    np.testing.assert_array_equal(many.columns()["goal"][:5], few.columns()["goal"])
