"""Value functions, inverse dynamics and cloned policies, trained by the loop that trains diffusers."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from small_training import CONFIG, NUM_STEPS, make_straight_episode, write_straight_paths

from diffplan.checkpoint import save_checkpoint
from diffplan.config import config_to_dict, with_overrides
from diffplan.data.format.dataset import open_dataset
from diffplan.data.format.manifest import Manifest, make_columns, new_dataset_uuid
from diffplan.data.format.writer import create_dataset, write_unit
from diffplan.data.windows.returns import compute_returns_to_go
from diffplan.errors import CheckpointError, ConfigError
from diffplan.networks.policy_network import PolicyNetwork
from diffplan.planning.loading import load_action_model, load_planner, load_policy, save_action_model
from diffplan.training.batches import TrainingBatches
from diffplan.training.loop import train, validate
from diffplan.training.state import TrainingState

CPU = torch.device("cpu")
STEP_SECONDS = 0.01
FAST = {
    "training.num_steps": 300,
    "training.batch_size": 64,
    "training.learning_rate": 3e-3,
    "training.num_warmup_steps": 10,
    "training.ema_decay": 0.9,
    "training.validation_fraction": 0.3,
    "training.validation_interval": 300,
    "network.hidden_dim": 32,
}


def make_driven_episode(index):
    """A path along a direction of its own: the action is the velocity, and the reward the first position."""
    episode = make_straight_episode(index)
    velocity = np.random.default_rng(100 + index).uniform(-2, 2, 2)
    positions = episode.observations[0, :2] + STEP_SECONDS * 10 * np.arange(NUM_STEPS + 1)[:, None] * velocity
    observations = np.concatenate([positions, np.zeros_like(positions)], axis=1).astype(np.float32)
    return dataclasses.replace(
        episode,
        observations=observations,
        actions=np.tile(velocity, (NUM_STEPS, 1)).astype(np.float32),
        rewards=observations[1:, 0],
    )


@pytest.fixture(scope="module")
def driven(tmp_path_factory):
    root = tmp_path_factory.mktemp("driven") / "dataset"
    manifest = create_dataset(
        root,
        Manifest(
            dataset_uuid=new_dataset_uuid(),
            env=config_to_dict(CONFIG.env),
            collection={"seed": 0},
            columns=make_columns(4, 2),
            action_low=[-2.0, -2.0],
            action_high=[2.0, 2.0],
        ),
    )
    write_unit(root, manifest, 0, [make_driven_episode(i) for i in range(60)])
    return open_dataset(root)


def fit(dataset, objective, **overrides):
    config = with_overrides(CONFIG, {**FAST, "training.objective": objective, **overrides})
    batches = TrainingBatches(config, dataset)
    state = TrainingState(config, batches.layout)
    losses = []
    train(state, batches, on_progress=lambda progress: losses.append(progress.validation_loss))
    return state, batches, losses[-1]


def save(path, state, batches):
    save_checkpoint(
        path,
        config=state.config,
        layout=batches.layout,
        step=state.step,
        normalizer=batches.normalizer,
        weights=state.average_weights(),
        dataset={},
        training_state=state.state_dict(),
        return_range=batches.return_range,
    )
    return path


def test_targets_of_values_are_the_discounted_returns_from_the_first_step(driven):
    config = with_overrides(CONFIG, {"training.objective": "value", "training.discount": 0.9})
    batches = TrainingBatches(config, driven)
    returns = compute_returns_to_go(driven.read_column("reward"), driven.episodes.length, 0.9)
    low, high = np.quantile(returns.astype(np.float64), [0.005, 0.995])
    assert batches.return_range == pytest.approx((low, high))
    batch = batches.make(0)
    assert batch.target is not None
    firsts = batches.normalizer.unnormalize(batch.x_clean[:, 0]).numpy()
    observations = driven.read_column("observation")
    for first, target in zip(firsts, batch.target.tolist(), strict=True):
        row = np.abs(observations - first).sum(axis=1).argmin()
        assert target == pytest.approx((returns[row] - low) / (high - low), abs=1e-4)


def test_a_trained_value_tells_good_plans_from_bad_ones_and_guides(driven, tmp_path):
    state, batches, loss = fit(driven, "value", **{"training.discount": 0.9, "training.num_steps": 400})
    targets = torch.cat([batch.target for batch in batches.make_validation()])
    assert loss < 0.5 * targets.var()
    value = save(tmp_path / "value", state, batches)
    diffuser = save(
        tmp_path / "diffuser", *fit(driven, "diffusion", **{"windows.goal_columns": (), "training.num_steps": 5})[:2]
    )
    goalless = with_overrides(state.config.planning, {"horizon.max_speed_error": 1e9, "guidance.guides": ()})
    planner = load_planner(diffuser, with_overrides(goalless, {"guidance.value": str(value), "guidance.scale": 1e-6}))
    starts = np.tile([[2.0, 2.0, 0.0, 0.0]], (3, 1))
    plans = planner.plan(starts, None, torch.Generator().manual_seed(0), horizons=[10])
    scores = [plan.guide_score for plan in plans]
    # The value of what is given out, by the network itself.
    x = torch.from_numpy(batches.normalizer.normalize(np.stack([plan.observations for plan in plans]))).float()
    with torch.no_grad():
        expected = state.make_average_network()(x, torch.zeros(3, dtype=torch.long))
    assert scores == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-4)
    strong = load_planner(diffuser, with_overrides(goalless, {"guidance.value": str(value), "guidance.scale": 30.0}))
    guided = strong.plan(starts, None, torch.Generator().manual_seed(0), horizons=[10])
    assert np.mean([plan.guide_score for plan in guided]) > np.mean(scores) + 0.01


def test_a_value_of_other_noise_or_columns_is_refused_in_one_line(driven, tmp_path):
    value = save(tmp_path / "value", *fit(driven, "value", **{"training.num_steps": 2})[:2])
    for name, override, expected in (
        ("noise", {"diffusion.num_diffusion_steps": 16}, "noise schedule"),
        ("columns", {"windows.columns": "actions_observations"}, "columns"),
        ("space", {"windows.normalization": "gaussian", "diffusion.clip_denoised": False}, "normalization"),
    ):
        diffuser = save(tmp_path / name, *fit(driven, "diffusion", **{"training.num_steps": 2, **override})[:2])
        settings = with_overrides(CONFIG.planning, {"guidance.value": str(value)})
        with pytest.raises(
            CheckpointError, match=rf"^planning\.value: expected the {expected} of .*train both"
        ) as caught:
            load_planner(diffuser, settings)
        assert "\n" not in str(caught.value)


def test_checkpoints_are_taken_for_what_they_are(driven, tmp_path):
    paths = {
        objective: save(tmp_path / objective, *fit(driven, objective, **{"training.num_steps": 2})[:2])
        for objective in ("diffusion", "value", "inverse_dynamics", "behavior_cloning")
    }
    loaders = {"diffusion": load_planner, "inverse_dynamics": load_action_model, "behavior_cloning": load_policy}
    for wanted, load in loaders.items():
        for objective, path in paths.items():
            if objective == wanted:
                load(path)
                continue
            with pytest.raises(
                CheckpointError, match=rf"expected a checkpoint of training\.objective {wanted}, got {objective}"
            ):
                load(path)


def test_inverse_dynamics_give_the_action_between_observations(driven, tmp_path):
    state, batches, loss = fit(driven, "inverse_dynamics")
    assert loss < 0.01
    assert batches.make(0).x_clean.shape[1:] == (2, 6)
    path = save(tmp_path / "actions", state, batches)
    model = load_action_model(path)
    episode = make_driven_episode(999)
    found = model.predict(episode.observations[:-1], episode.observations[1:])
    assert np.abs(found - episode.actions).max() < 0.5
    assert np.sqrt(np.mean((found - episode.actions) ** 2)) < 0.2
    diffuser = save(tmp_path / "diffuser", *fit(driven, "diffusion", **{"training.num_steps": 2})[:2])
    save_action_model(diffuser, model)
    planner = load_planner(diffuser)
    assert planner.inverse_dynamics is not None
    first, second = episode.observations[:1], episode.observations[1:2]
    np.testing.assert_allclose(planner.inverse_dynamics(first, second), found[:1], rtol=1e-5)


def test_changes_are_measured_in_the_data_before_the_first_step(driven):
    state, batches, _ = fit(
        driven, "inverse_dynamics", **{"training.num_steps": 1, "training.validation_fraction": 0.0}
    )
    changes = np.diff(driven.read_column("observation").reshape(60, NUM_STEPS, 4), axis=1).reshape(-1, 4)
    expected = np.maximum(changes.std(axis=0) / batches.normalizer.scale[2:], 1e-6)
    np.testing.assert_allclose(state.network.change_scale.numpy(), expected, rtol=0.05)
    resumed = TrainingState(state.config, batches.layout)
    resumed.load_state_dict(state.state_dict())
    assert torch.equal(resumed.network.change_scale, state.network.change_scale)


def test_a_cloned_policy_goes_where_it_is_told_and_cannot_guess(driven, tmp_path):
    state, batches, told = fit(driven, "behavior_cloning")
    _, _, guessed = fit(driven, "behavior_cloning", **{"windows.goal_columns": ()})
    assert told < 0.5 < guessed
    policy = load_policy(save(tmp_path / "policy", state, batches))
    positions = np.array([[2.0, 2.0, 0.0, 0.0]] * 4)
    goals = np.array([[4.0, 2.0], [0.0, 2.0], [2.0, 4.0], [2.0, 0.0]])
    actions = policy.act(positions, goals)
    assert actions.shape == (4, 2)
    directions = (goals - 2.0) / 2.0
    assert ((actions * directions).sum(axis=1) > 0.5).all()
    with pytest.raises(ValueError, match="expected goals of columns"):
        policy.act(positions)


def test_a_cloned_policy_without_goals_takes_none(driven, tmp_path):
    state, batches, _ = fit(driven, "behavior_cloning", **{"windows.goal_columns": (), "training.num_steps": 2})
    assert batches.make(0).goal is None
    policy = load_policy(save(tmp_path / "policy", state, batches))
    assert policy.act(np.zeros((2, 4))).shape == (2, 2)
    with pytest.raises(ValueError, match="expected no goals, got goals"):
        policy.act(np.zeros((2, 4)), np.zeros((2, 2)))
    assert isinstance(policy.network, PolicyNetwork)


def test_held_out_episodes_are_never_trained_on_and_stay_when_the_dataset_grows(tmp_path):
    write_straight_paths(tmp_path / "dataset")
    dataset = open_dataset(tmp_path / "dataset")
    config = with_overrides(CONFIG, {"training.validation_fraction": 0.4, "windows.stride": 1})
    batches = TrainingBatches(config, dataset)
    observations = dataset.read_column("observation")

    def episodes_of(made):
        found = set()
        for batch in made:
            for first in batches.normalizer.unnormalize(batch.x_clean[:, 0]).numpy():
                found.add(int(np.abs(observations - first).sum(axis=1).argmin()) // NUM_STEPS)
        return found

    trained = episodes_of(batches.make(step) for step in range(30))
    held_out = episodes_of(batches.make_validation())
    assert trained
    assert held_out
    assert not trained & held_out
    assert trained | held_out == set(range(len(dataset.episodes)))
    first, second = batches.make_validation(), batches.make_validation()
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.x_clean, other.x_clean)
        assert torch.equal(one.noise, other.noise)
    assert sum(len(batch.x_clean) for batch in first) >= config.training.validation_windows
    assert TrainingBatches(CONFIG, dataset).make_validation() == []


def test_the_held_out_loss_is_that_of_the_average_over_all_windows(driven):
    state, batches, loss = fit(driven, "diffusion", **{"training.num_steps": 20})
    assert loss == pytest.approx(validate(state, batches.make_validation(), CPU))
    halves = [TrainingBatches(state.config, driven, rank=rank, world_size=2).make_validation() for rank in range(2)]
    parts = [validate(state, half, CPU) for half in halves]
    sizes = [sum(len(batch.x_clean) for batch in half) for half in halves]
    assert np.average(parts, weights=sizes) == pytest.approx(loss, rel=1e-4)


def test_training_stops_where_the_held_out_loss_no_longer_falls(driven):
    overrides = {
        "training.learning_rate": 1e-12,  # nothing is learned, so only the copying of the first average is news
        "training.validation_interval": 2,
        "training.patience": 3,
        "training.num_steps": 100,
        "training.ema_start_step": 0,
    }
    config = with_overrides(CONFIG, {**FAST, **overrides})

    def run(num_steps=None, state=None):
        batches = TrainingBatches(config, driven)
        state = TrainingState(config, batches.layout) if state is None else state
        reports, checkpoints = [], []
        train(
            state,
            batches,
            num_steps=num_steps,
            on_progress=reports.append,
            on_checkpoint=lambda p: checkpoints.append(p.step),
        )
        return state, reports, checkpoints

    straight, reports, checkpoints = run()
    assert straight.step < 100
    assert [report.stopped_early for report in reports] == [False] * (len(reports) - 1) + [True]
    assert checkpoints[-1] == straight.step
    half, *_ = run(num_steps=straight.step - 3)
    resumed = TrainingState(config, straight.layout)
    resumed.load_state_dict(half.state_dict())
    run(state=resumed)
    assert resumed.step == straight.step
    assert resumed.early_stopping == straight.early_stopping
    again, more, _ = run(state=straight)
    assert (again.step, more) == (straight.step, [])


def test_half_precision_is_near_and_keeps_weights_in_full(driven):
    _, _, exact = fit(driven, "diffusion", **{"training.num_steps": 30, "training.precision": "float32"})
    half, _, rough = fit(driven, "diffusion", **{"training.num_steps": 30, "training.precision": "bfloat16"})
    assert rough == pytest.approx(exact, rel=0.05)
    assert rough != exact
    assert {p.dtype for p in half.network.parameters()} == {torch.float32}
    assert all(value.dtype == torch.float32 for value in half.average_weights().values())


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"training.validation_fraction": 1.0}, r"training\.validation_fraction: expected a number in \[0, 1\)"),
        ({"training.patience": 2}, r"training\.patience: expected 0 without held-out episodes"),
        ({"training.discount": 0.0}, r"training\.discount: expected a number in \(0, 1\]"),
        (
            {"training.objective": "behavior_cloning", "network.condition": "returns"},
            r"network\.condition: expected none where training\.objective is behavior_cloning",
        ),
        ({"network.hidden_dim": 0}, r"network\.hidden_dim: expected at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(overrides, expected):
    with pytest.raises(ConfigError, match=expected):
        with_overrides(CONFIG, overrides)


def test_settings_are_plain_json():
    config = with_overrides(CONFIG, {"training.objective": "value"})
    assert json.loads(json.dumps(config_to_dict(config)))["training"]["objective"] == "value"
