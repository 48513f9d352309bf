"""RLlib's soft actor-critic trains in the environment, its buffer is the dataset, and it goes on where it stopped."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from diffplan.behaviors.collection import UnitCollector, complete_collection
from diffplan.behaviors.policy_file import PolicyFileBehavior
from diffplan.cli import main
from diffplan.cluster.baselines import online_rl
from diffplan.cluster.baselines.online_rl import DATASET, POLICY, SNAPSHOTS, STATE, OnlineTrainer, train_online
from diffplan.config import CollectionConfig, EnvConfig, config_from_dict
from diffplan.config.online_rl import SACSettings
from diffplan.data.format.dataset import open_dataset
from diffplan.environments import make_env
from diffplan.errors import CheckpointError, ConfigError
from diffplan.runs.progress import Progress
from diffplan.tasks.contracts import BehaviorContext

HOPPER = EnvConfig(env_id="diffplan/Hopper-v4")
PENDULUM = EnvConfig(env_id="Pendulum-v1")
SMALL = SACSettings(
    hidden_dim=16, batch_size=16, random_steps=40, num_envs=4, round_steps=80, updates_per_step=0.25, learning_rate=1e-3
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("online") / "hopper"
    train_online(HOPPER, out, num_steps=240, settings=SMALL, seed=3)
    return out


def test_every_step_is_in_the_dataset_as_the_environment_makes_it(trained: Path) -> None:
    dataset = open_dataset(trained / DATASET)
    assert dataset.num_steps == 240
    assert sorted(set(dataset.episodes.column("unit").tolist())) == [0, 1, 2]
    assert len(set(dataset.episodes.column("episode_index").tolist())) == len(dataset.episodes)
    env = make_env(dataset.env)
    seeds = dataset.episodes.column("seed")
    assert len(set(seeds.tolist())) == len(seeds)
    num_terminated = 0
    for i in range(len(dataset.episodes)):
        observations, rewards = (dataset.episode_column(i, name) for name in ("observation", "reward"))
        first, _ = env.reset(seed=int(seeds[i]))
        np.testing.assert_array_equal(observations[0], first.astype(np.float32))
        terminated = False
        for t, action in enumerate(dataset.episode_column(i, "action")):
            assert not terminated
            after, reward, terminated, _, _ = env.step(action)
            expected = observations[t + 1] if t + 1 < len(rewards) else dataset.episodes.final_observations[i]
            np.testing.assert_array_equal(expected, np.asarray(after, np.float32))
            assert rewards[t] == np.float32(reward)
        assert terminated == dataset.episodes.column("terminated")[i]
        num_terminated += terminated
    assert num_terminated > 0


def test_an_interrupted_training_goes_on_with_the_same_numbers(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_updates, update = 0, online_rl.update_learner

    def stop_late(*arguments):
        nonlocal num_updates
        num_updates += 1
        if num_updates == 37:  # in the third round
            raise KeyboardInterrupt
        return update(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(online_rl, "update_learner", stop_late)
        with pytest.raises(KeyboardInterrupt):
            train_online(HOPPER, tmp_path, num_steps=240, settings=SMALL, seed=3, resume=True)
    assert not (tmp_path / POLICY).exists()
    train_online(HOPPER, tmp_path, num_steps=240, settings=SMALL, seed=3, resume=True)
    assert open_dataset(tmp_path / DATASET).content_hash() == open_dataset(trained / DATASET).content_hash()
    for name in (POLICY, *(f"{SNAPSHOTS}/{steps:08d}.npz" for steps in (80, 160, 240))):
        first, second = np.load(trained / name), np.load(tmp_path / name)
        assert first.files == second.files
        assert all(np.array_equal(first[key], second[key]) for key in first.files)


def test_a_round_that_was_written_but_not_recorded_is_not_kept_twice(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self):
        raise KeyboardInterrupt

    train_online(HOPPER, tmp_path, num_steps=160, settings=SMALL, seed=3)
    with monkeypatch.context() as patch:
        patch.setattr(OnlineTrainer, "_save", stop)  # after the unit, before the state
        with pytest.raises(KeyboardInterrupt):
            train_online(HOPPER, tmp_path, num_steps=240, settings=SMALL, seed=3, resume=True)
    assert open_dataset(tmp_path / DATASET).num_steps == 240
    train_online(HOPPER, tmp_path, num_steps=240, settings=SMALL, seed=3, resume=True)
    assert open_dataset(tmp_path / DATASET).content_hash() == open_dataset(trained / DATASET).content_hash()


def test_the_policy_in_the_file_is_rllibs(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        trainer = OnlineTrainer(HOPPER, tmp_path, settings=SMALL, seed=0, resume=False)
        trainer.run_round(80, Progress("sac", 80, "steps"))
        path = trainer.finish()
    observations = np.random.default_rng(0).normal(size=(5, 11))
    context = BehaviorContext(
        env=HOPPER, action_low=-np.ones(3), action_high=np.ones(3), action_noise=0.0, max_goal_steps=1000
    )
    archive = np.load(path)
    arrays = {name: archive[name] for name in archive.files if not name.startswith("log_std")}
    behavior = PolicyFileBehavior(arrays, context)
    behavior.reset(observations, [np.random.default_rng(i) for i in range(5)])
    with torch.no_grad():
        inputs = {"obs": torch.from_numpy(observations.astype(np.float32))}
        mean, log_std = trainer.module.forward_inference(inputs)["action_dist_inputs"].chunk(2, dim=1)
    np.testing.assert_allclose(behavior.act(observations), torch.tanh(mean), atol=1e-6)
    hidden = observations
    for i in range(2):
        hidden = np.maximum(hidden @ archive[f"w{i}"].T + archive[f"b{i}"], 0)
    np.testing.assert_allclose(hidden @ archive["log_std_w"].T + archive["log_std_b"], log_std, atol=1e-5)


def test_snapshots_collect(trained: Path) -> None:
    collection = CollectionConfig(behavior=f"policy:{trained / SNAPSHOTS / '00000080.npz'}", episodes_per_unit=2)
    env, collection = complete_collection(HOPPER, collection)
    assert len(UnitCollector(env, collection).collect(0)) == 2


@pytest.mark.soak
def test_it_learns(tmp_path: Path) -> None:
    sizes = {"hidden_dim": 64, "batch_size": 128, "random_steps": 600, "num_envs": 2, "round_steps": 1_200}
    settings = SACSettings(**sizes, learning_rate=3e-3, target_rate=0.01)  # learns sooner than with the defaults
    train_online(PENDULUM, tmp_path, num_steps=4_800, settings=settings)
    rounds = json.loads((tmp_path / "training.json").read_text())["rounds"]
    assert rounds[0]["return"] < -800
    assert rounds[-1]["return"] > -400


def test_bad_input_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is a training already; go on with it by --resume"):
        train_online(HOPPER, trained, num_steps=240, settings=SMALL, seed=3)
    with pytest.raises(ConfigError, match="begun with another seed"):
        train_online(HOPPER, trained, num_steps=240, settings=SMALL, seed=4, resume=True)
    with pytest.raises(ConfigError, match="round_steps: expected a multiple of num_envs"):
        SACSettings(num_envs=3)
    with pytest.raises(ConfigError, match="num_steps: expected at least 1"):
        train_online(HOPPER, tmp_path / "new", num_steps=0)
    with pytest.raises(ConfigError, match="expected actions"):
        train_online(EnvConfig(env_id="CartPole-v1"), tmp_path / "new", num_steps=10)
    assert not (tmp_path / "new").exists()
    (tmp_path / DATASET).mkdir()
    (tmp_path / STATE).write_bytes(b"x")
    with pytest.raises(CheckpointError, match="expected the state of a training"):
        train_online(HOPPER, tmp_path, num_steps=240, settings=SMALL, resume=True)


def test_the_command_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    options = ["--num_envs", "4", "--round_steps", "40", "--hidden_dim", "8", "--random_steps", "20"]
    command = [
        "behavior",
        "train",
        "Pendulum-v1",
        "--out",
        str(out),
        "--num_steps",
        "80",
        "--batch_size",
        "8",
        *options,
    ]
    assert main(command) == 0
    assert f"policy:{out / POLICY}" in capsys.readouterr().out
    manifest = open_dataset(out / DATASET).manifest
    assert manifest.source["kind"] == "training"
    assert config_from_dict(SACSettings, manifest.source["settings"]).num_envs == 4
    assert main(command) == 2
    assert "--resume" in capsys.readouterr().err
