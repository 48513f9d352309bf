"""The value that judges plans: what it learns, how it scores, and how it comes back from a checkpoint."""

import dataclasses

import numpy as np
import pytest
import torch

from diffplan.checkpoint import load_companion, save_checkpoint, save_companion
from diffplan.config import (
    Actions,
    Config,
    DiffusionConfig,
    EnvConfig,
    GuidanceConfig,
    HorizonConfig,
    NetworkConfig,
    PlanningConfig,
    SamplingConfig,
    SelectionConfig,
    TrainingConfig,
    WindowConfig,
    config_to_dict,
    with_overrides,
)
from diffplan.data.format.dataset import open_dataset
from diffplan.data.format.manifest import Manifest, make_columns, new_dataset_uuid
from diffplan.data.format.writer import create_dataset, write_unit
from diffplan.diffusion.guidance import PlanBatch
from diffplan.errors import CheckpointError, DataError, PlanningError
from diffplan.layout import Layout
from diffplan.planning.companions import value_steps
from diffplan.planning.companions.value_fit import fit_value
from diffplan.planning.companions.value_model import JUDGES, LearnedValue, ValueModel
from diffplan.planning.loading import load_planner, save_value
from diffplan.training import companions
from diffplan.training.batches import TrainingBatches
from diffplan.training.companions import find_needed, fit_companions
from diffplan.training.loop import train
from diffplan.training.state import TrainingState
from diffplan.types import Episode

DISCOUNT = 0.9
CONFIG = Config(
    env=EnvConfig(env_id="chain"),
    windows=WindowConfig(
        min_horizon=4, max_horizon=4, horizon_multiple=1, stride=1, columns="actions_observations", padding="end"
    ),
    network=NetworkConfig(dim=8, dim_mults=(1, 2)),
    diffusion=DiffusionConfig(num_diffusion_steps=4),
    training=TrainingConfig(discount=DISCOUNT, num_steps=2, batch_size=4),
    planning=PlanningConfig(
        sampling=SamplingConfig(num_steps=2),
        horizon=HorizonConfig(min=4, max=4, multiple=1),
        selection=SelectionConfig(num_candidates=8, rule="guide"),
        guidance=GuidanceConfig(value="actions"),
        controller=Actions(),
    ),
)
"""An environment without goals, of which nothing is known."""


def write_dataset(root, episodes):
    """A dataset of (observations, actions, rewards, terminated), observations one more than actions."""
    observation_dim, action_dim = episodes[0][0].shape[1], episodes[0][1].shape[1]
    manifest = create_dataset(
        root,
        Manifest(
            dataset_uuid=new_dataset_uuid(),
            env=config_to_dict(CONFIG.env),
            collection={"seed": 0},
            columns=make_columns(observation_dim, action_dim),
            action_low=[-1.0] * action_dim,
            action_high=[1.0] * action_dim,
        ),
    )
    made = [
        Episode(
            episode_index=i,
            seed=i,
            behavior="chain",
            observations=observations.astype(np.float32),
            actions=actions.astype(np.float32),
            rewards=rewards.astype(np.float32),
            terminated=terminated,
            truncated=not terminated,
        )
        for i, (observations, actions, rewards, terminated) in enumerate(episodes)
    ]
    write_unit(root, manifest, 0, made)
    return open_dataset(root)


def walk(start, num_steps, terminated):
    """Along a line, one place and a reward of 1 a step."""
    places = np.arange(start, start + num_steps + 1, dtype=float)[:, None]
    return places, np.ones((num_steps, 1)), np.ones(num_steps), terminated


def gamble(index):
    """One step from the only place there is: the action is the reward, and the episode is over."""
    action = np.array([[1.0 if index % 2 else -1.0]])
    return np.zeros((2, 1)), action, action[:, 0], True


def make_plans(transitions, action_dim=1, lengths=None):
    transitions = torch.as_tensor(transitions, dtype=torch.float32)
    return PlanBatch(
        transitions=transitions,
        normalized=transitions,
        layout=Layout(transitions.shape[2] - action_dim, action_dim),
        position_columns=(),
        velocity_columns=(),
        step_seconds=1.0,
        lengths=None if lengths is None else torch.tensor(lengths),
    )


class KnownModel(ValueModel):
    """V(s) = 10 s; Q(s, a) = 10 s + a; a step's reward is 2 s + a + s'; an episode ends on reaching a place below 0."""

    def __init__(self, **settings):
        super().__init__(1, 1, discount=0.5, has_terminations=True, **settings)
        self.value_center.fill_(3.0)
        self.advantage_scale.fill_(4.0)

    def compute_values(self, observations):
        return 10 * observations[..., 0]

    def compute_action_values(self, observations, actions):
        return 10 * observations[..., 0] + actions[..., 0]

    def predict_outcomes(self, observations, actions, next_observations):
        ends = next_observations[..., 0]
        rewards = 2 * observations[..., 0] + ends + (actions[..., 0] if self.judges_actions else 0.0)
        return rewards, (ends >= 0).float()


PLANS = [[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], [[1.0, 2.0], [3.0, -4.0], [5.0, 6.0]]]
"""(action, observation) at three steps; the second plan ends its episode on the way."""


def test_actions_are_judged_by_their_advantages():
    scores = LearnedValue(KnownModel(), "actions").score(make_plans(PLANS))
    # V(s_0), and the advantages a_t of the steps that the episode reaches.
    returns = [20 + 1 + 0.5 * 3 + 0.25 * 5, 20 + 1]
    np.testing.assert_allclose(scores, (np.array(returns) - 3) / 4, rtol=1e-6)


def test_observations_are_judged_by_rewards_and_the_last_value():
    scores = LearnedValue(KnownModel(), "observations").score(make_plans(PLANS))
    returns = [(4 + 4 + 1) + 0.5 * (8 + 6 + 3) + 0.25 * 60, 4 - 4 + 1]
    np.testing.assert_allclose(scores, (np.array(returns) - 3) / 4, rtol=1e-6)


def test_a_stride_discounts_a_plan_step_more():
    model = KnownModel(stride=2, judges_actions=False)
    scores = LearnedValue(model, "observations").score(make_plans([[[2.0], [4.0], [6.0]]], action_dim=0))
    np.testing.assert_allclose(scores, ((4 + 4) + 0.25 * (8 + 6) + 0.25**2 * 60 - 3) / 4, rtol=1e-6)


@pytest.mark.parametrize("judge", [judge for judge in JUDGES if judge != "plan"])  # which is of one horizon
def test_plans_of_several_horizons_are_scored_as_each_by_itself(judge):
    guide = LearnedValue(KnownModel(), judge)
    plans = np.abs(np.random.default_rng(0).normal(size=(3, 5, 2)))
    together = guide.score(make_plans(plans, lengths=[5, 2, 3]))
    apart = [guide.score(make_plans(plan[None, :length]))[0] for plan, length in zip(plans, [5, 2, 3], strict=True)]
    np.testing.assert_allclose(together, apart, rtol=1e-6)


def test_terminal_observations_are_worth_nothing_and_truncated_episodes_go_on(tmp_path):
    places = torch.arange(10.0)[:, None]
    left = np.arange(10, 0, -1)  # steps to the terminal place
    for terminated, expected in ((True, (1 - DISCOUNT**left) / (1 - DISCOUNT)), (False, np.full(10, 10.0))):
        # Starts anywhere, so that it is the place and not the time that values are of; all truncated at the same place.
        dataset = write_dataset(tmp_path / str(terminated), [walk(i % 10, 10 - i % 10, terminated) for i in range(40)])
        model, errors = fit_value(dataset, CONFIG, num_steps=500, batch_size=64, hidden_dim=32)
        assert model.has_terminations == terminated
        np.testing.assert_allclose(model.compute_values(places), expected, rtol=0.05, atol=0.1)
        np.testing.assert_allclose(
            model.compute_action_values(places, torch.ones(10, 1)), expected, rtol=0.05, atol=0.1
        )
        _, going_on = model.predict_outcomes(places, torch.ones(10, 1), places + 1)
        np.testing.assert_allclose(going_on, np.where(terminated & (left == 1), 0.0, 1.0), atol=0.1)
        assert errors.value < 0.1


@pytest.mark.parametrize(("expectile", "expected"), [(0.5, 0.0), (0.9, 0.8), (0.1, -0.8)])
def test_an_observation_is_worth_an_expectile_of_the_actions_taken_there(tmp_path, expectile, expected):
    """Of two values ±1 alike: expectile (1 - v) = (1 - expectile) (1 + v); 0.5 is their mean."""
    dataset = write_dataset(tmp_path, [gamble(i) for i in range(64)])
    model, errors = fit_value(dataset, CONFIG, expectile=expectile, num_steps=400, batch_size=64, hidden_dim=16)
    assert float(model.compute_values(torch.zeros(1))) == pytest.approx(expected, abs=0.08)
    actions = torch.tensor([[-1.0], [1.0]])
    np.testing.assert_allclose(model.compute_action_values(torch.zeros(2, 1), actions), [-1, 1], atol=0.05)
    assert errors.reward < 0.05


def test_rewards_of_a_plan_step_are_those_of_its_environment_steps(tmp_path):
    config = dataclasses.replace(CONFIG, windows=dataclasses.replace(CONFIG.windows, columns="observations", stride=3))
    dataset = write_dataset(tmp_path, [walk(0, 8, False) for _ in range(4)])
    model, _ = fit_value(dataset, config, num_steps=500, batch_size=64, hidden_dim=16)
    assert not model.judges_actions
    rewards, _ = model.predict_outcomes(torch.tensor([[2.0]]), torch.zeros(1, 0), torch.tensor([[5.0]]))
    assert float(rewards) == pytest.approx(1 + DISCOUNT + DISCOUNT**2, abs=0.01)
    with pytest.raises(DataError, match="at least 9 steps"):
        fit_value(dataset, dataclasses.replace(config, windows=dataclasses.replace(config.windows, stride=9)))


def test_a_fit_follows_from_its_seed(tmp_path, monkeypatch):
    dataset = write_dataset(tmp_path, [walk(i, 6, i % 2 == 0) for i in range(6)])
    progress = []
    first, again, other = (
        fit_value(
            dataset, CONFIG, num_steps=120, hidden_dim=8, seed=seed, on_progress=lambda *done: progress.append(done)
        )
        for seed in (1, 1, 2)
    )
    assert first[1] == again[1] != other[1]
    for name, weights in first[0].state_dict().items():
        assert torch.equal(weights, again[0].state_dict()[name])
    assert progress[:2] == [(100, 120), (120, 120)]
    # Of more data than are kept in memory, whole episodes are.
    monkeypatch.setattr(value_steps, "MAX_STEPS", 20)
    part, _ = fit_value(dataset, CONFIG, num_steps=2, hidden_dim=8)
    assert np.isfinite(float(part.value_scale))


@pytest.fixture
def dataset(tmp_path):
    """Random steps on a plane, rewarded for being on the right."""
    generator = np.random.default_rng(0)
    episodes = []
    for _ in range(6):
        actions = generator.uniform(-1, 1, (30, 2))
        observations = np.concatenate([generator.uniform(-2, 2, (1, 2)), actions]).cumsum(axis=0)
        episodes.append((observations, actions, observations[1:, 0], False))
    return write_dataset(tmp_path / "data", episodes)


@pytest.fixture
def checkpoint(tmp_path, dataset):
    """An untrained diffuser of plans with actions."""
    batches = TrainingBatches(CONFIG, dataset)
    state = TrainingState(CONFIG, batches.layout)
    save_checkpoint(
        tmp_path / "checkpoint",
        config=CONFIG,
        layout=batches.layout,
        step=0,
        normalizer=batches.normalizer,
        weights=state.average_weights(),
        dataset={"path": dataset.uri},
        training_state={},
    )
    return tmp_path / "checkpoint"


@pytest.fixture
def short_fit(monkeypatch):
    """A fit of a few steps, for what it comes to is tested above."""
    monkeypatch.setattr(
        companions, "fit_value", lambda *given, **named: fit_value(*given, **named, num_steps=20, hidden_dim=8)
    )


@pytest.mark.usefixtures("short_fit")
def test_calibration_fits_what_the_settings_use(checkpoint):
    with pytest.raises(PlanningError, match=r"has no value, got actions; fit one with `diffplan calibrate"):
        load_planner(checkpoint)
    measured = fit_companions(checkpoint)
    assert {name for name, found in measured.items() if found is None} == {
        "data",
        "plans",
        "inverse_dynamics_error",
        "action_head_errors",
        "support_points",
    }
    assert set(measured["value"]) == {"reward", "value", "expectile", "value_steps", "discount"}
    for name in ("horizon_model", "inverse_dynamics", "support"):
        assert load_companion(checkpoint, name) is None
    assert load_planner(checkpoint).value.judge == "actions"
    # Settings without a value have no use for any companion.
    measured = fit_companions(checkpoint, settings=with_overrides(CONFIG.planning, {"guidance.value": None}))
    assert [name for name, found in measured.items() if found is not None] == ["dataset"]


def test_companions_that_are_needed():
    goals = dataclasses.replace(
        CONFIG.env, position_columns=(0, 1), velocity_columns=(2, 3), goal_columns=(0, 1), step_seconds=0.1
    )
    for env, columns, controller, value, needed in (
        (CONFIG.env, "actions_observations", "actions", None, set()),
        (CONFIG.env, "actions_observations", "actions", "models/value", set()),
        (CONFIG.env, "observations", "inverse_dynamics", "observations", {"inverse_dynamics", "value"}),
        (goals, "observations", "tracking", None, {"horizon_model", "inverse_dynamics", "support"}),
        (goals, "actions_observations", "actions", "actions", {"horizon_model", "support", "value"}),
    ):
        windows = dataclasses.replace(CONFIG.windows, columns=columns)
        config = dataclasses.replace(CONFIG, env=env, windows=windows)
        settings = with_overrides(CONFIG.planning, {"controller": controller, "guidance.value": value})
        assert find_needed(config, settings) == needed


@pytest.mark.usefixtures("short_fit")
@pytest.mark.parametrize("judge", JUDGES)
def test_the_candidate_of_the_highest_value_is_taken(checkpoint, judge):
    fit_companions(checkpoint, settings=with_overrides(CONFIG.planning, {"guidance.value": judge}))
    planner = load_planner(checkpoint, with_overrides(CONFIG.planning, {"guidance.value": judge}))
    observations = np.array([[0.5, -0.5], [1.0, 1.0]], dtype=np.float32)
    chosen = planner.plan(observations, None, torch.Generator().manual_seed(0))
    # The same candidates, each as a plan of its own.
    drawn = planner.plan(np.repeat(observations, 8, axis=0), None, torch.Generator().manual_seed(0), num_candidates=1)
    scores = np.array([plan.guide_score for plan in drawn]).reshape(2, 8)
    assert np.ptp(scores, axis=1).min() > 1e-3
    assert [plan.guide_score for plan in chosen] == pytest.approx(scores.max(axis=1).tolist(), rel=1e-4)
    # Guidance bends plans by it. Whether they are better is a question to a trained diffuser alone.
    guided = planner.plan(observations, None, torch.Generator().manual_seed(0), guidance_scale=5.0)
    for bent, plain in zip(guided, chosen, strict=True):
        assert not np.allclose(bent.observations[1:], plain.observations[1:], atol=1e-3)


def test_a_value_comes_back_with_its_planner(checkpoint):
    torch.manual_seed(0)
    model = ValueModel(2, 2, discount=0.7, has_terminations=True, offsets=(1, 2, 3), hidden_dim=8)
    model.observation_scale.fill_(2.0)
    model.advantage_scale.fill_(0.5)
    model.plan_change_scale.fill_(3.0)
    save_value(checkpoint, model)
    plans = make_plans(np.random.default_rng(0).normal(size=(3, 4, 4)), action_dim=2)
    for judge in JUDGES:
        planner = load_planner(checkpoint, with_overrides(CONFIG.planning, {"guidance.value": judge}))
        assert torch.equal(planner.value.score(plans), LearnedValue(model, judge).score(plans))
    assert load_planner(checkpoint, companions=False).value is None
    save_value(checkpoint, ValueModel(2, 2, discount=0.7, hidden_dim=8))
    with pytest.raises(PlanningError, match="fitted without whole plans"):
        load_planner(checkpoint, with_overrides(CONFIG.planning, {"guidance.value": "plan"}))


def test_a_value_that_does_not_fit_is_refused_in_one_line(checkpoint):
    save_value(checkpoint, ValueModel(2, 2, hidden_dim=8))
    for tensors, settings in (
        ({"a": torch.zeros(2)}, {}),
        (ValueModel(2, 2, hidden_dim=8).state_dict(), {}),
        (ValueModel(2, 2, hidden_dim=8).state_dict(), {"discount": 0.9, "stride": 2}),
        (ValueModel(3, 2, hidden_dim=8).state_dict(), {"discount": 0.9, "stride": 1}),
        (ValueModel(2, 1, hidden_dim=8).state_dict(), {"discount": 0.9, "stride": 1}),
        (ValueModel(2, 2, hidden_dim=8, judges_actions=False).state_dict(), {"discount": 0.9, "stride": 1}),
    ):
        save_companion(checkpoint, "value", tensors, settings)
        with pytest.raises(CheckpointError, match=r"belongs to another model.*`diffplan calibrate`"):
            load_planner(checkpoint)


def test_actions_are_judged_only_where_plans_hold_every_one(tmp_path, dataset):
    for windows in ({"columns": "observations"}, {"stride": 2}):
        config = dataclasses.replace(CONFIG, windows=dataclasses.replace(CONFIG.windows, **windows))
        batches = TrainingBatches(config, dataset)
        save_checkpoint(
            tmp_path,
            config=config,
            layout=batches.layout,
            step=0,
            normalizer=batches.normalizer,
            weights=TrainingState(config, batches.layout).average_weights(),
            dataset={},
            training_state={},
        )
        with pytest.raises(PlanningError, match=r"planning.value: expected observations, .* got actions"):
            load_planner(
                tmp_path, with_overrides(CONFIG.planning, {"controller": "actions", "guidance.value": "actions"})
            )


def step_randomly(generator, num_steps=20):
    """Along a line by actions at random; what is rewarded is to be near its middle."""
    actions = generator.uniform(-1, 1, (num_steps, 1))
    places = generator.uniform(-2, 2) + np.concatenate([np.zeros((1, 1)), np.cumsum(0.3 * actions, axis=0)])
    return places, actions, -np.abs(places[1:, 0]), False


def test_a_value_guides_a_trained_diffuser_to_what_is_rewarded(tmp_path):
    generator = np.random.default_rng(0)
    dataset = write_dataset(tmp_path / "data", [step_randomly(generator) for _ in range(150)])
    training = TrainingConfig(discount=DISCOUNT, num_steps=400, batch_size=64, num_warmup_steps=20, ema_start_step=20)
    config = dataclasses.replace(
        CONFIG,
        training=training,
        network=NetworkConfig(dim=16, dim_mults=(1, 2)),
        diffusion=DiffusionConfig(num_diffusion_steps=8, prediction="velocity"),
    )
    batches = TrainingBatches(config, dataset)
    state = TrainingState(config, batches.layout)
    train(state, batches)
    save_checkpoint(
        tmp_path / "checkpoint",
        config=config,
        layout=batches.layout,
        step=training.num_steps,
        normalizer=batches.normalizer,
        weights=state.average_weights(),
        dataset={"path": dataset.uri},
        training_state={},
    )
    model, _ = fit_value(dataset, config, num_steps=800, hidden_dim=32)
    save_value(tmp_path / "checkpoint", model)
    starts = np.repeat([[-1.5], [1.5]], 32, axis=0).astype(np.float32)

    def plan(scale, judge):
        changes = {
            "selection.num_candidates": 1,
            "sampling.num_steps": 4,
            "guidance.scale": scale,
            "guidance.target": "denoised",
            "guidance.value": judge,
        }
        planner = load_planner(tmp_path / "checkpoint", with_overrides(config.planning, changes))
        plans = planner.plan(starts, None, torch.Generator().manual_seed(0))
        inwards = -np.sign(starts[:, 0]) * np.array([found.actions[0, 0] for found in plans])
        return np.mean([found.guide_score for found in plans]), inwards.mean()

    (plain, at_random), (guided, inwards) = plan(0.0, "actions"), plan(0.5, "actions")
    assert guided > plain + 2
    assert abs(at_random) < 0.3
    assert inwards > 0.5
    # What is judged by its observations alone is bent in them; which actions lead there is for inverse dynamics.
    assert plan(0.1, "observations")[0] > plan(0.0, "observations")[0] + 1
