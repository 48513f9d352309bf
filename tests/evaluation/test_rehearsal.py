"""What would fail in every worker of an evaluation or a search fails before a cluster starts, in one line."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict

from diffplan.behaviors.collection import make_manifest
from diffplan.cluster.evaluate import coordinator
from diffplan.config import CollectionConfig, EnvConfig
from diffplan.errors import ConfigError
from diffplan.evaluation.rehearsal import rehearse_episode
from diffplan.evaluation.sources import find_policy

UMAZE = EnvConfig(env_id="diffplan/Maze2D-UMaze-v1")
ROOMS = EnvConfig(
    env_id="diffplan/Maze2D-v1", env_kwargs={"maze": "#####/#OO##/#####/#OG##/#####", "max_episode_steps": 50}
)
"""Two rooms without a door."""


class Odd(gymnasium.Env[Any, Any]):
    """An environment that fails where it is told to."""

    def __init__(self, fails: str = "", space: Any = None) -> None:
        self.observation_space = Box(-1, 1, (3,)) if space is None else space
        self.action_space = Box(-1, 1, (1,), np.float32)
        self._fails = fails

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if self._fails == "reset":
            raise RuntimeError("the robot is off\nsee the manual")
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self._fails == "step":
            raise KeyError("torque")
        return self.observation_space.sample(), 0.0, False, False, {}


@pytest.fixture
def odd() -> Callable[..., EnvConfig]:
    gymnasium.register("Odd-v0", Odd, max_episode_steps=5)
    yield lambda **kwargs: EnvConfig(env_id="Odd-v0", env_kwargs=kwargs)
    del gymnasium.registry["Odd-v0"]


def test_an_episode_that_cannot_begin_is_one_line(odd: Callable[..., EnvConfig]) -> None:
    rehearse_episode(odd(), seed=0)
    rehearse_episode(odd(), seed=0, observation_dim=3)
    for env, wanted, words in (
        (odd(fails="reset"), None, "RuntimeError: the robot is off$"),
        (odd(fails="step"), None, "KeyError: 'torque'"),
        (odd(space=Box(0, 255, (4, 4))), None, "expected observations in a 1-d Box"),
        (odd(space=Dict({"a": Box(0, 1, (2,))})), None, "Odd-v0"),
        (odd(), 4, "expected observations of size 4, as the policy was trained with, got 3"),
        (EnvConfig(env_id="CartPole-v1"), None, "expected actions in a 1-d Box, got Discrete"),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            rehearse_episode(env, seed=0, observation_dim=wanted)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["waypoint", "behavior"])
def test_rooms_without_a_door_are_refused_by_whoever_needs_ways(name: str) -> None:
    with pytest.raises(ConfigError, match=r"way between all free cells, got none between \(1, 1\) and \(3, 1\)"):
        rehearse_episode(ROOMS, seed=0, make_policy=find_policy(f"baseline:{name}", env=ROOMS).load())
    rehearse_episode(UMAZE, seed=0, make_policy=find_policy(f"baseline:{name}", env=UMAZE).load())
    rehearse_episode(ROOMS, seed=0, make_policy=find_policy("baseline:random", env=ROOMS).load())


@pytest.mark.parametrize("behavior", ["waypoint", "noisy_waypoint", "noisy_waypoint:0.01,random:0.99"])
@pytest.mark.parametrize("seed", range(3))
def test_rooms_without_a_door_are_refused_whatever_goal_is_drawn_first(behavior: str, seed: int) -> None:
    with pytest.raises(ConfigError, match="way between all free cells"):
        make_manifest(ROOMS, CollectionConfig(behavior=behavior, seed=seed))


def test_an_evaluation_fails_before_ray_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    def start() -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(coordinator, "ray_session", start)
    source = find_policy("pretrained:maze2d-umaze", env=EnvConfig(env_id="Pendulum-v1", task="gymnasium"))
    with pytest.raises(ConfigError, match=r"expected observations of size 4, .* got 3"):
        coordinator.evaluate(source, tmp_path / "x", episodes=2)
    source = find_policy("pretrained:maze2d-umaze")
    with pytest.raises(ConfigError, match="wall cell"):
        coordinator.evaluate(source, tmp_path / "x", episodes=2, protocol="maze2d", goal=(2.0, 1.0))
    with pytest.raises(ConfigError, match="way between all free cells"):
        coordinator.evaluate(find_policy("baseline:behavior", env=ROOMS), tmp_path / "x", protocol="multi2d")
    assert not (tmp_path / "x").exists()
