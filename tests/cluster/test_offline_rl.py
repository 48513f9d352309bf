"""CQL and IQL are trained by RLlib itself, and what is left behind acts as RLlib's module does."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import collect

from diffplan.behaviors.offline_policy import OfflinePolicy, load_offline_policy
from diffplan.cli import main
from diffplan.cluster.baselines.offline_rl import OfflineTrainer, train_offline_rl
from diffplan.config import CollectionConfig, EnvConfig, config_from_dict
from diffplan.config.offline_rl import SETTINGS, Algorithm, CQLSettings, IQLSettings, OfflineRLSettings
from diffplan.data.format.dataset import open_dataset
from diffplan.errors import CheckpointError, ConfigError, DataError
from diffplan.evaluation.protocol import apply_protocol
from diffplan.evaluation.rollout import evaluate_episodes

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

GOAL = (1.0, 1.0)
SMALL: dict[Algorithm, OfflineRLSettings] = {
    "cql": CQLSettings(batch_size=16, hidden_dim=32, num_sampled_actions=2),
    "iql": IQLSettings(batch_size=16, hidden_dim=32, inverse_temperature=10.0),
}


@pytest.mark.parametrize("goal", [GOAL, None], ids=["one goal", "any goal"])
@pytest.mark.parametrize("algorithm", ["cql", "iql"])
def test_the_policy_acts_as_rllibs_module_does(
    tiny_dataset: Path, algorithm: Algorithm, goal: tuple[float, float] | None
) -> None:
    trainer = OfflineTrainer(open_dataset(tiny_dataset), algorithm=algorithm, goal=goal, settings=SMALL[algorithm])
    losses = trainer.update(3)
    assert np.isfinite(list(losses.values())).all()
    policy = trainer.make_policy()
    observations = np.random.default_rng(0).uniform(0.5, 3.5, (32, 4))
    goals = np.tile(GOAL, (32, 1))
    policy.reset(observations, goals)

    told = observations if goal else np.concatenate([observations, goals], axis=1)
    center, scale = (policy.tensors[f"observation_{name}"].numpy() for name in ("center", "scale"))
    with torch.no_grad():
        out = trainer.module.forward_inference({"obs": torch.from_numpy(((told - center) / scale).astype(np.float32))})
    distribution = trainer.module.get_inference_action_dist_cls().from_logits(out["action_dist_inputs"])
    mean = distribution.to_deterministic().sample().numpy()
    np.testing.assert_allclose(policy.compute_mean(observations), mean, atol=1e-6)
    margin = SMALL[algorithm].action_margin
    narrow = distribution.from_logits(torch.cat([torch.from_numpy(mean), torch.full_like(distribution.loc, -20.0)], -1))
    for deterministic, squashed in (("clip", np.clip(mean, -1, 1)), ("tanh", narrow._squash(narrow.loc).numpy())):
        copy = OfflinePolicy(policy.tensors, replace(policy.description, deterministic=deterministic))
        copy.reset(observations, goals)
        np.testing.assert_allclose(copy.act(observations), np.clip(squashed / (1 - margin), -1, 1), atol=1e-6)


@pytest.mark.parametrize("algorithm", ["cql", "iql"])
def test_the_learner_is_rllibs_with_the_settings_asked_for(tiny_dataset: Path, algorithm: Algorithm) -> None:
    trainer = OfflineTrainer(open_dataset(tiny_dataset), algorithm=algorithm, goal=GOAL, settings=SMALL[algorithm])
    learner, module = trainer._learner, trainer.module
    assert type(learner).__module__.startswith(f"ray.rllib.algorithms.{algorithm}.")
    assert type(module).__module__.startswith(f"ray.rllib.algorithms.{algorithm}.")
    if algorithm == "iql":
        assert learner.expectile["default_policy"].item() == pytest.approx(0.9)
        assert learner.temperature["default_policy"].item() == 10.0
    shapes = [tuple(p.shape) for part in (module.qf_encoder, module.qf) for p in part.parameters()]
    assert shapes == [(32, 6), (32,), (32, 32), (32,), (1, 32), (1,)]

    def weights(part: torch.nn.Module) -> torch.Tensor:
        return torch.cat([p.detach().flatten().clone() for p in part.parameters()])

    target = weights(module.target_qf_encoder)
    for _ in range(2):  # after every batch
        trainer.update(1)
        target = 0.995 * target + 0.005 * weights(module.qf_encoder)
        torch.testing.assert_close(weights(module.target_qf_encoder), target, atol=1e-6, rtol=1e-5)


def test_iql_learns_where_the_reward_is(tiny_dataset: Path) -> None:
    settings = IQLSettings(batch_size=64, hidden_dim=32, critic_learning_rate=3e-3, target_rate=0.05)
    trainer = OfflineTrainer(open_dataset(tiny_dataset), algorithm="iql", goal=GOAL, settings=settings)
    trainer.update(300)
    places = np.array([[1.0, 1.0, 0.0, 0.0], [3.0, 3.0, 0.0, 0.0]])
    inputs = torch.from_numpy(((places - trainer._center) / trainer._scale).astype(np.float32))
    with torch.no_grad():
        near, far = trainer.module.compute_values({"obs": inputs}).tolist()
    assert near > far + 1.0


def test_a_run_leaves_a_policy_that_repeats_and_can_be_evaluated(tiny_dataset: Path, tmp_path: Path) -> None:
    paths = [
        train_offline_rl(
            tiny_dataset, tmp_path / f"policy{i}", algorithm="iql", num_updates=5, settings=SMALL["iql"], seed=seed
        )
        for i, seed in enumerate((3, 3, 4))
    ]
    first, again, other = (load_offline_policy(path) for path in paths)
    assert all(torch.equal(tensor, again.tensors[name]) for name, tensor in first.tensors.items())
    assert not torch.equal(first.tensors["layers.0.weight"], other.tensors["layers.0.weight"])
    training = first.description.training
    assert config_from_dict(SETTINGS["iql"], training["settings"]) == replace(SMALL["iql"], goal_columns=(0, 1))
    assert (training["num_updates"], training["goal"]) == (5, "goal-conditioned")
    assert training["seconds"] > 0
    assert training["dataset"]["dataset_uuid"] == open_dataset(tiny_dataset).manifest.dataset_uuid
    env = apply_protocol("multi2d", first.description.env)
    results, _ = evaluate_episodes(
        lambda context: first, replace(env, env_kwargs={**env.env_kwargs, "max_episode_steps": 30}), range(3), seed=0
    )
    assert all(np.isfinite(result.score or 0.0) for result in results)


@pytest.mark.parametrize("algorithm", ["cql", "iql"])
def test_without_goals_the_rewards_in_the_data_are_learned_from(tmp_path: Path, algorithm: Algorithm) -> None:
    root = collect(
        EnvConfig(env_id="diffplan/Hopper-v4"), CollectionConfig(num_steps=300, episodes_per_unit=8), tmp_path / "data"
    )
    settings = replace(SMALL[algorithm], normalize_rewards=True)
    trainer = OfflineTrainer(open_dataset(root), algorithm=algorithm, settings=settings)
    assert not trainer.is_goal_conditioned
    batch = trainer._make_batch()
    assert batch["terminateds"].dtype == torch.bool
    out = train_offline_rl(root, tmp_path / "policy", algorithm=algorithm, num_updates=3, settings=settings)
    policy = load_offline_policy(out)
    assert (policy.description.goal_dim, policy.description.training["goal"]) == (0, "none")
    results, _ = evaluate_episodes(lambda context: policy, policy.description.env, range(2), seed=0)
    assert all(np.isfinite(result.score) for result in results)
    with pytest.raises(ConfigError, match="expected episodes without a goal, got one"):
        policy.reset(np.zeros((1, 11)), np.zeros((1, 2)))
    with pytest.raises(ConfigError, match="goal_columns: expected the columns"):
        OfflineTrainer(open_dataset(root), algorithm=algorithm, goal=GOAL)


def test_bad_arguments_are_named(tiny_dataset: Path, tmp_path: Path) -> None:
    def train(**arguments: object) -> None:
        train_offline_rl(tiny_dataset, tmp_path / "policy", **{"algorithm": "iql", **arguments})  # pyright: ignore

    with pytest.raises(ConfigError, match="goal: expected 2 finite numbers"):
        train(goal=(1.0,))
    with pytest.raises(ConfigError, match="normalize_rewards: expected false"):
        train(settings=IQLSettings(normalize_rewards=True))
    with pytest.raises(DataError, match="expected steps of the data that end within"):
        train(goal=(90.0, 1.0))
    with pytest.raises(ConfigError, match="expected IQLSettings, got CQLSettings"):
        train(settings=CQLSettings())
    with pytest.raises(ConfigError, match="goal_columns: expected columns below 4"):
        train(settings=IQLSettings(goal_columns=(0, 4)))
    (tmp_path / "policy").mkdir()
    with pytest.raises(CheckpointError, match="there is something already"):
        train(goal=GOAL)
    assert list(tmp_path.iterdir()) == [tmp_path / "policy"]


def test_the_command_trains(tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["baseline", "train", "cql", str(tiny_dataset), "--out", str(tmp_path / "policy")]
    options = ["--goal", "1", "1", "--num_updates", "2", "--batch_size", "8", "--hidden_dim", "16"]
    assert main([*command, *options]) == 0
    assert "cql, 2 updates" in capsys.readouterr().out
    assert load_offline_policy(tmp_path / "policy").description.goal == GOAL
    assert main([*command, *options]) == 2
    assert "there is something already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected one of the actions train; got nothing"),
        (["trian", "cql"], "Did you mean 'train'?"),
        (["train"], "expected one of the actions cql, iql; got nothing"),
        (["train", "sac"], "expected one of cql, iql"),
        (["train", "iql", "/nowhere", "--out", "/nowhere/policy"], "expected a dataset"),
        (["train", "iql", "/nowhere", "--out", "/nowhere/policy", "--expectile", "2"], "expectile: expected"),
    ],
)
def test_mistakes_are_answered_with_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["baseline", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_command_says_what_it_can_without_ray() -> None:
    code = "import sys; from diffplan.cli import main; main(['baseline', '--help']); assert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
