"""Every environment that Gymnasium registers either works or is refused in one line, before Ray starts."""

from pathlib import Path

import gymnasium
import pytest

from diffplan.behaviors.collection import UnitCollector, make_manifest
from diffplan.cli import main
from diffplan.cluster.collect import coordinator
from diffplan.config import CollectionConfig, EnvConfig
from diffplan.environments import find_episode_limit, find_spec
from diffplan.errors import ConfigError
from diffplan.evaluation.rehearsal import rehearse_episode
from diffplan.tasks.registry import complete_env

SHORT = CollectionConfig(num_steps=6, episode_steps=3, episodes_per_unit=2)
WORKING = {"Pendulum-v1", "MountainCarContinuous-v0", "HalfCheetah-v5", "Ant-v5", "diffplan/Maze2D-UMaze-v1"}
REFUSED = {"CartPole-v1", "Blackjack-v1", "FrozenLake-v1", "Taxi-v3"}


@pytest.mark.soak
def test_every_environment_works_or_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def start() -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(coordinator, "ray_session", start)
    find_spec(EnvConfig(env_id="Pendulum-v1"))  # lets installed packages register theirs
    works, refused = set(), {}
    for env_id in sorted(gymnasium.registry):
        env = EnvConfig(env_id=env_id)
        try:
            make_manifest(env, SHORT)
        except ConfigError as error:
            refused[env_id] = str(error)
            continue
        episodes = UnitCollector(env, SHORT).collect(0)
        assert [len(episode) for episode in episodes] == [3, 3] or all(episode.terminated for episode in episodes)
        if find_episode_limit(env) is not None:
            rehearse_episode(complete_env(env), seed=0)
        works.add(env_id)
    assert works >= WORKING
    assert set(refused) >= REFUSED
    for env_id, message in refused.items():
        assert message.startswith(f"env.env_id {env_id!r}: ")
        assert "\n" not in message
        for words in (
            ["collect", "gymnasium", "--env.env_id", env_id, "--episode_steps", "3", "--out", str(tmp_path / "x")],
            ["pipeline", "gymnasium", "--env.env_id", env_id, "--out", str(tmp_path / "x")],
            ["evaluate", "baseline:random", "--env_id", env_id, "--episodes", "1", "--out", str(tmp_path / "x")],
        ):
            assert main(words) == 2, words
            assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.iterdir())
