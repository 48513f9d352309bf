"""Environments of others: how they are found, what is made of their observations, and what is refused."""

import subprocess
import sys
import textwrap

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from diffplan.behaviors.collection import UnitCollector, complete_collection, make_manifest
from diffplan.config import CollectionConfig, EnvConfig
from diffplan.environments import (
    GoalInInfos,
    find_episode_limit,
    find_spec,
    make_env,
    make_vector_env,
)
from diffplan.errors import ConfigError
from diffplan.evaluation.policies import SCRIPTED
from diffplan.evaluation.rollout import evaluate_episodes
from diffplan.tasks.registry import DEFAULT_TASK, complete_env


class Reach(gymnasium.Env):
    """A point in a plane, led to a goal; observations are a Dict, as of Gymnasium-Robotics.

    Args:
        shows_position: whether `observation` holds the position, last and in reverse; else only the velocity.
    """

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, shows_position: bool = True, space: gymnasium.Space | None = None) -> None:
        box = lambda size: spaces.Box(-np.inf, np.inf, (size,), np.float64)  # noqa: E731
        self.shows_position = shows_position
        self.observation_space = space or spaces.Dict(
            observation=box(4 if shows_position else 2), achieved_goal=box(2), desired_goal=box(2)
        )
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.velocity = self.np_random.uniform(-1, 1, 2), np.zeros(2)
        self.goal = self.np_random.uniform(-1, 1, 2)
        return self._observe(), {}

    def step(self, action):
        self.velocity = 0.9 * self.velocity + 0.1 * np.asarray(action)
        self.position = self.position + self.velocity
        distance = np.linalg.norm(self.position - self.goal)
        return self._observe(), -float(distance), False, False, {"is_success": distance < 0.2}

    def _observe(self):
        shown = [self.velocity, self.position[::-1]] if self.shows_position else [self.velocity]
        return {"observation": np.concatenate(shown), "achieved_goal": self.position, "desired_goal": self.goal}


class ReachBatch(VectorEnv):
    """A batch of its own that keeps observations as a Dict."""

    metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012

    def __init__(self, num_envs, autoreset_mode=None, **kwargs):
        self.num_envs, env = num_envs, Reach()
        self.single_observation_space, self.single_action_space = env.observation_space, env.action_space


class NeverEnds(gymnasium.Env):
    observation_space = spaces.Box(-1, 1, (2,), np.float64)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2), {}

    def step(self, action):
        return np.zeros(2), 1.0, False, False, {}


@pytest.fixture(autouse=True)
def registered():
    ids = ("Reach-v0", "ReachBatch-v0", "NeverEnds-v0")
    gymnasium.register("tests/Reach-v0", entry_point=Reach, max_episode_steps=15)
    gymnasium.register("tests/ReachBatch-v0", Reach, vector_entry_point=ReachBatch, max_episode_steps=15)
    gymnasium.register("tests/NeverEnds-v0", entry_point=NeverEnds)
    yield
    for name in ids:
        del gymnasium.registry[f"tests/{name}"]


REACH = EnvConfig(env_id="tests/Reach-v0")
BLIND = EnvConfig(env_id="tests/Reach-v0", env_kwargs={"shows_position": False})


def act_randomly(context):
    return SCRIPTED["random"](context)


# Goal-conditioned environments


@pytest.mark.parametrize(
    ("env", "size", "columns"), [(REACH, 4, (3, 2)), (BLIND, 4, (2, 3))], ids=["shown", "appended"]
)
def test_dict_observations_become_vectors_whose_goal_columns_are_known(env, size, columns):
    """The columns that equal the achieved goal, in its order; it is appended if there are none.

    Both kinds are of one id, so that what is known of one must not be taken for the other.
    """
    complete = complete_env(env)
    assert (complete.goal_columns, complete.position_columns, complete.task) == (columns, (), DEFAULT_TASK)
    made = make_env(env)
    assert isinstance(made, GoalInInfos)
    assert made.observation_space == spaces.Box(-np.inf, np.inf, (size,), np.float64)
    observation, info = made.reset(seed=4)
    for _ in range(5):
        np.testing.assert_array_equal(observation[list(columns)], made.unwrapped.position)
        np.testing.assert_array_equal(observation[:2], made.unwrapped.velocity)
        observation, _, _, _, info = made.step(np.ones(2))
    assert info["success"] == info["is_success"]
    observation, info = made.reset(seed=4)
    np.testing.assert_array_equal(info["goal"], made.unwrapped.goal)
    np.testing.assert_array_equal(info["goal"], np.random.Generator(np.random.PCG64(4)).uniform(-1, 1, (2, 2))[1])


def test_goal_columns_that_are_given_stay():
    assert complete_env(EnvConfig(env_id="tests/Reach-v0", goal_columns=(0,))).goal_columns == (0,)


@pytest.mark.parametrize(
    "env", [REACH, BLIND, EnvConfig(env_id="tests/ReachBatch-v0")], ids=["shown", "blind", "batch"]
)
def test_batches_are_what_single_environments_are(env):
    batch = make_vector_env(env, 3)
    observations, infos = batch.reset(seed=[1, 2, 3])
    single = make_env(env)
    for i, seed in enumerate((1, 2, 3)):
        observation, info = single.reset(seed=seed)
        np.testing.assert_array_equal(observations[i], observation)
        np.testing.assert_array_equal(infos["goal"][i], info["goal"])
    batch.close()


def test_goal_conditioned_environments_are_collected_and_evaluated():
    (episode,) = UnitCollector(REACH, CollectionConfig(num_steps=15, episodes_per_unit=1)).collect(0)
    assert episode.observations.shape == (16, 4)
    results, _ = evaluate_episodes(act_randomly, REACH, range(4), seed=0)
    assert len({tuple(result.goal) for result in results}) == 4
    assert all(result.success in (True, False) for result in results)
    assert {result.length for result in results} == {15}


def test_the_real_pointmaze_has_its_position_as_goal_columns():
    pytest.importorskip("gymnasium_robotics")
    env = complete_env(EnvConfig(env_id="gymnasium_robotics:PointMaze_UMaze-v3"))
    assert (env.goal_columns, env.position_columns, env.task) == ((0, 1), (), DEFAULT_TASK)
    (episode,) = UnitCollector(env, CollectionConfig(num_steps=20, episode_steps=20, episodes_per_unit=1)).collect(0)
    assert episode.observations.shape == (21, 4)
    assert np.abs(episode.observations[-1] - episode.observations[0]).max() > 1e-3
    results, _ = evaluate_episodes(
        act_randomly, EnvConfig(env_id=env.env_id, env_kwargs={"max_episode_steps": 10}), range(2), seed=0
    )
    assert [len(result.goal) for result in results] == [2, 2]
    assert {result.success for result in results} <= {True, False}


# What is refused


IMAGES = spaces.Box(0, 255, (8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("env", "words"),
    [
        (EnvConfig(env_id="CartPole-v1"), ["expected actions in a Box", "got Discrete(2)", "continuous actions"]),
        (EnvConfig(env_id="FrozenLake-v1"), ["expected observations in a Box", "got Discrete(16)"]),
        (EnvConfig(env_id="tests/Reach-v0", env_kwargs={"space": IMAGES}), ["(8, 8, 3)", "images are not planned in"]),
        (
            EnvConfig(env_id="tests/Reach-v0", env_kwargs={"space": spaces.Dict(left=IMAGES, right=IMAGES)}),
            ["got a Dict of left, right", "flatten them"],
        ),
        (EnvConfig(env_id="Pendulum-v3"), ["Pendulum-v3"]),
        (EnvConfig(env_id="Pendulmu-v1"), ["Pendulmu-v1", "my_package:Id"]),
        (EnvConfig(env_id="no_such_module:Pendulum-v1"), ["no_such_module"]),
        (EnvConfig(env_id="json:NoSuch-v0"), ["json:NoSuch-v0", "doesn't exist"]),
        (EnvConfig(env_id="Pendulum-v1", env_kwargs={"gravty": 1}), ["Pendulum-v1", "gravty"]),
        (EnvConfig(env_id=""), ["--env.env_id ID"]),
    ],
    ids=lambda value: value.env_id if isinstance(value, EnvConfig) else "",
)
def test_what_cannot_be_planned_in_is_one_clear_line(env, words):
    for refuse in (
        lambda: complete_env(env),
        lambda: make_manifest(env, CollectionConfig(episode_steps=10)),
        lambda: UnitCollector(env, CollectionConfig(episode_steps=10)),
    ):
        with pytest.raises(ConfigError) as caught:
            refuse()
        assert "\n" not in str(caught.value)
        for word in ["env.env_id", *words]:
            assert word in str(caught.value)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "FrozenLake-v1"])
def test_it_is_refused_before_ray_starts(env_id):
    """By the stages themselves; neither Ray nor a model is loaded for it."""
    code = f"""
        import sys
        from diffplan.behaviors.collection import complete_collection
        from diffplan.config import CollectionConfig, EnvConfig
        from diffplan.errors import ConfigError
        try:
            complete_collection(EnvConfig(env_id={env_id!r}), CollectionConfig())
        except ConfigError as error:
            print(error)
        sys.exit("ray" in sys.modules or "torch" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"env.env_id '{env_id}': ")
    assert done.stdout.count("\n") == 1


def test_episodes_that_need_not_end_are_one_clear_line():
    env = EnvConfig(env_id="tests/NeverEnds-v0")
    for refuse in (
        lambda: complete_collection(env, CollectionConfig()),
        lambda: evaluate_episodes(act_randomly, env, range(1), seed=0),
    ):
        with pytest.raises(ConfigError, match="expected a registered max_episode_steps, got none; give") as caught:
            refuse()
        assert "\n" not in str(caught.value)


def test_evaluations_end_where_the_data_did_if_no_limit_is_registered():
    env, collection = complete_collection(EnvConfig(env_id="tests/NeverEnds-v0"), CollectionConfig(episode_steps=7))
    assert (collection.episode_steps, find_episode_limit(env)) == (7, 7)
    results, _ = evaluate_episodes(act_randomly, env, range(2), seed=0)
    assert [result.length for result in results] == [7, 7]
    registered, collection = complete_collection(REACH, CollectionConfig(episode_steps=7))
    assert (registered.env_kwargs, find_episode_limit(registered)) == ({}, 15)
    (episode,) = UnitCollector(REACH, CollectionConfig(num_steps=7, episode_steps=7, episodes_per_unit=1)).collect(0)
    assert (len(episode), episode.truncated) == (7, True)


# How they are found


MODULE = """
    import gymnasium, numpy as np

    class Slide(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-9, 9, (1,), np.float64)
        action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.x = np.zeros(1)
            return self.x, {}

        def step(self, action):
            self.x = self.x + action
            return self.x, float(self.x[0]), False, False, {}

    def register():
        gymnasium.register("mine/Slide-v0", entry_point=Slide, max_episode_steps=5)
"""
"""An environment of one's own, which is registered by a call."""
SPAWN = """
    import multiprocessing, sys
    from diffplan.behaviors.collection import UnitCollector
    from diffplan.config import CollectionConfig, EnvConfig

    def collect(env_id):
        collection = CollectionConfig(num_steps=5, episodes_per_unit=1)
        return UnitCollector(EnvConfig(env_id=env_id), collection).collect(0)[0].observations.tolist()

    if __name__ == "__main__":
        here = collect(sys.argv[1])
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.apply(collect, (sys.argv[1],)) == here
        print(len(here))
"""
"""Collects an episode here and in a process that knows nothing but what it is sent, as an actor of Ray does."""


def run_spawning(env_id, tmp_path, work):
    (tmp_path / "spawning.py").write_text(textwrap.dedent(SPAWN))
    command = [sys.executable, str(tmp_path / "spawning.py"), env_id]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=work)


def test_an_environment_is_named_by_module_and_id_in_every_process(tmp_path):
    """Its module lies in the working directory, which neither the script nor the package lies in."""
    work = tmp_path / "work"
    work.mkdir()
    (work / "slide_registers.py").write_text(textwrap.dedent(MODULE) + "\nregister()\n")
    done = run_spawning("slide_registers:mine/Slide-v0", tmp_path, work)
    assert (done.returncode, done.stdout) == (0, "6\n"), done.stderr
    missing = run_spawning("slide_register:mine/Slide-v0", tmp_path, work)
    assert "ConfigError: env.env_id 'slide_register:mine/Slide-v0': No module named 'slide_register'" in missing.stderr


def install(directory, name, group, value, module):
    """A package as an installer leaves it: a module and its entry point."""
    information = directory / f"{name}-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[{group}]\n{name} = {value}\n")
    (directory / f"{name}.py").write_text(textwrap.dedent(module))


def test_environments_of_installed_packages_are_found_in_every_process(tmp_path, monkeypatch):
    installed = tmp_path / "installed"
    install(installed, "slide_package", "gymnasium.envs", "slide_package:register", MODULE)
    install(installed, "broken_package", "gymnasium.envs", "broken_package:register", "raise RuntimeError('broken')")
    monkeypatch.setenv("PYTHONPATH", str(installed))
    work = tmp_path / "work"
    work.mkdir()
    done = run_spawning("mine/Slide-v0", tmp_path, work)
    assert (done.returncode, done.stdout) == (0, "6\n"), done.stderr


def test_a_specification_is_a_copy():
    find_spec(REACH).max_episode_steps = 3
    assert find_spec(REACH).max_episode_steps == 15
