import dataclasses

import numpy as np
import pytest
import torch
from small_training import CONFIG, NUM_EPISODES, make_straight_episode

from diffplan.checkpoint import load_checkpoint, save_checkpoint
from diffplan.config import with_overrides
from diffplan.data.format.dataset import open_dataset
from diffplan.data.format.manifest import Manifest, make_columns, new_dataset_uuid
from diffplan.data.format.writer import create_dataset, write_unit
from diffplan.data.maintenance.merging import Source, merge
from diffplan.data.windows.conditions import Conditions
from diffplan.errors import ConfigError, DataError, PlanningError
from diffplan.planning.loading import load_planner
from diffplan.planning.planner import with_settings
from diffplan.seeding import Stream, make_seed
from diffplan.training import conditions
from diffplan.training.batches import TrainingBatches
from diffplan.training.conditions import fit_return_range
from diffplan.training.loop import train
from diffplan.training.passes import compute_batch_loss
from diffplan.training.state import TrainingState
from diffplan.types import Episode

CPU = torch.device("cpu")
OVERRIDES = {
    "returns": {"network.condition": "returns"},
    "task": {"network.condition": "task", "network.num_tasks": 3},
}
TOLD = Conditions(returns_to_go=True)
KINDS = list(OVERRIDES)
FAR = 100


def write(root, episodes):
    manifest = create_dataset(
        root,
        Manifest(
            dataset_uuid=new_dataset_uuid(),
            env={"env_id": "diffplan/Maze2D-Open-v1"},
            collection={"seed": 0},
            columns=make_columns(4, 2),
            action_low=[-1.0, -1.0],
            action_high=[1.0, 1.0],
        ),
    )
    write_unit(root, manifest, 0, list(episodes))
    return open_dataset(root)


def with_rewards(episode, rewards):
    return dataclasses.replace(episode, rewards=np.broadcast_to(np.float32(rewards), len(episode)).copy())


def make_rewarded_episodes():
    generator = np.random.default_rng(0)
    return [with_rewards(make_straight_episode(i), generator.uniform(-1, 3, 30)) for i in range(NUM_EPISODES)]


@pytest.fixture(scope="module")
def rewarded(tmp_path_factory):
    """A dataset with rewards, and its episodes."""
    episodes = make_rewarded_episodes()
    return write(tmp_path_factory.mktemp("rewarded") / "dataset", episodes), episodes


@pytest.fixture(scope="module")
def merged(tmp_path_factory, rewarded):
    """A dataset of two tasks with rewards; the second is far away."""
    root = tmp_path_factory.mktemp("merged")
    far = [dataclasses.replace(e, observations=e.observations + np.float32(FAR)) for e in rewarded[1]]
    sources = [Source(rewarded[0], "near", 1.0), Source(write(root / "far", far), "far", 3.0)]
    return merge(sources, root / "merged")


def make_batches(kind, dataset, overrides=None, **kwargs):
    return TrainingBatches(with_overrides(CONFIG, {**OVERRIDES[kind], **(overrides or {})}), dataset, **kwargs)


def assert_same(first, second, rows=slice(None)):
    """To the last bit; NaN equals NaN."""
    for field in dataclasses.fields(first):
        a, b = getattr(first, field.name), getattr(second, field.name)
        assert (a is None) == (b is None), field.name
        if a is not None:
            torch.testing.assert_close(a, b[rows], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("storage", ["memory", "mapped", "blocks"])
def test_returns_are_those_to_the_end_of_the_episode_in_the_range(rewarded, storage):
    dataset, episodes = rewarded
    batches = make_batches("returns", dataset, {"network.condition_dropout": 0.0, "windows.storage": storage})
    positions = np.concatenate([e.observations[:-1] for e in episodes])
    returns_to_go = np.concatenate([e.rewards[::-1].astype(float).cumsum()[::-1] for e in episodes])
    low, high = batches.return_range
    for step in range(4):
        batch = batches.make(step)
        firsts = batches.normalizer.unnormalize(batch.x_clean)[:, 0].numpy()
        rows = np.abs(positions - firsts[:, None]).max(axis=2).argmin(axis=1)
        assert batch.condition.dtype == torch.float32
        np.testing.assert_allclose(batch.condition, (returns_to_go[rows] - low) / (high - low), atol=1e-5)


@pytest.mark.parametrize("storage", ["memory", "mapped", "blocks"])
def test_tasks_are_those_of_the_dataset(merged, storage):
    batches = make_batches("task", merged, {"network.condition_dropout": 0.0, "windows.storage": storage})
    assert batches.return_range is None
    told = []
    for step in range(5):
        batch = batches.make(step)
        is_far = batches.normalizer.unnormalize(batch.x_clean)[:, 0, 0] > FAR / 2
        assert torch.equal(batch.condition, is_far.float())
        told += batch.condition.tolist()
    assert set(told) == {0.0, 1.0}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("storage", ["memory", "mapped"])
def test_conditions_follow_from_seed_and_step_whatever_the_workers(merged, kind, storage):
    overrides = {"windows.storage": storage}
    whole = make_batches(kind, merged, overrides)
    withheld = set()
    for world_size in (1, 2, 3, 12):
        for rank in range(world_size):
            worker = make_batches(kind, merged, overrides, rank=rank, world_size=world_size)
            assert worker.return_range == whole.return_range
            for step, pass_index in [(7, 0), (0, 0), (0, 1)]:
                expected = whole.make(step, pass_index)
                assert_same(worker.make(step, pass_index), expected, slice(rank, None, world_size))
                withheld.add(tuple(expected.condition.isnan().tolist()))
    assert len(withheld) == 3
    other = make_batches(kind, merged, {**overrides, "training.seed": 1})
    assert tuple(other.make(0).condition.isnan().tolist()) not in withheld


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 1.0])
def test_share_of_rows_is_withheld(merged, kind, share):
    batches = make_batches(kind, merged, {"network.condition_dropout": share, "training.batch_size": 4000})
    withheld = batches.make(0).condition.isnan().float()
    assert withheld.mean() == pytest.approx(share, abs=0.025 if 0 < share < 1 else 0)
    first_half, second_half = withheld.view(2, -1)
    assert share in (0, 1) or not torch.equal(first_half, second_half)


def test_batches_without_a_condition_are_as_they_always_were(merged):
    batches = TrainingBatches(CONFIG, merged)
    assert batches.return_range is None
    for step, pass_index in [(0, 0), (3, 1)]:
        batch = batches.make(step, pass_index)
        assert batch.condition is None
        generator = torch.Generator().manual_seed(make_seed(0, Stream.TRAINING, step, pass_index, 1))
        assert torch.equal(batch.noise, torch.randn(batch.noise.shape, generator=generator))
        assert torch.equal(batch.diffusion_step, torch.randint(8, (12,), generator=generator))
        for kind in KINDS:
            told = make_batches(kind, merged).make(step, pass_index)
            assert_same(batch, dataclasses.replace(told, condition=None))


def test_range_of_returns_is_that_of_all_steps_but_the_outermost(rewarded):
    dataset, episodes = rewarded
    returns_to_go = np.concatenate([e.rewards[::-1].astype(float).cumsum()[::-1] for e in episodes])
    expected = tuple(np.quantile(returns_to_go, [0.005, 0.995]))
    assert fit_return_range(dataset, TOLD) == pytest.approx(expected, rel=1e-6)
    assert fit_return_range(dataset, TOLD, verify=True) == fit_return_range(dataset, TOLD)


def test_range_of_discounted_returns_is_that_of_all_steps(rewarded):
    dataset, episodes = rewarded
    discounted = []
    for episode in episodes:
        value = 0.0
        for reward in episode.rewards[::-1]:
            value = float(reward) + 0.9 * value
            discounted.append(value)
    got = fit_return_range(dataset, Conditions(returns_to_go=True, discount=0.9))
    assert got == pytest.approx(tuple(np.quantile(discounted, [0.005, 0.995])), rel=1e-5)


@pytest.mark.parametrize(
    ("reward", "expected"),
    [(0.0, (-0.5, 0.5)), (1e-3, (0.001, 0.03))],
)
def test_range_of_like_returns_is_widened(tmp_path, reward, expected):
    dataset = write(tmp_path, [with_rewards(make_straight_episode(i), reward) for i in range(4)])
    assert fit_return_range(dataset, TOLD) == pytest.approx(expected)


def test_range_of_rare_returns_is_from_the_lowest_to_the_highest(tmp_path):
    episodes = [with_rewards(make_straight_episode(i), 0.0) for i in range(40)]
    episodes[3] = with_rewards(episodes[3], np.arange(30) == 1)  # 2 steps of 1200 have a return
    assert fit_return_range(write(tmp_path, episodes), TOLD) == (0.0, 1.0)


@pytest.mark.parametrize("num_episodes", [1, 3])
def test_range_of_a_large_dataset_is_that_of_its_first_episodes(tmp_path, monkeypatch, num_episodes):
    episodes = make_rewarded_episodes()
    dataset = write(tmp_path, episodes)
    num_steps = int(dataset.episodes.length[:num_episodes].sum())
    monkeypatch.setattr(conditions, "MAX_RETURN_ROWS", num_steps + 1)
    returns = np.concatenate([e.rewards[::-1].astype(float).cumsum()[::-1] for e in episodes[:num_episodes]])
    expected = tuple(np.quantile(returns, [0.005, 0.995]))
    assert fit_return_range(dataset, TOLD) == pytest.approx(expected, rel=1e-5)


def test_data_that_cannot_tell_the_condition_are_refused_in_one_line(tmp_path, rewarded, merged):
    with pytest.raises(DataError, match=r"network\.condition task: expected a dataset of several tasks") as no_tasks:
        make_batches("task", rewarded[0])
    with pytest.raises(ConfigError, match=r"network\.num_tasks: expected at least 2, the tasks of .*, got 1") as many:
        make_batches("task", merged, {"network.num_tasks": 1})
    for caught in (no_tasks, many):
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("network", ["unet", "transformer"])
def test_two_workers_make_the_gradient_of_one(merged, kind, network):
    overrides = {"windows.padding": "end", "network.kind": network, "network.num_heads": 2}

    def compute(**kwargs):
        batches = make_batches(kind, merged, overrides, **kwargs)
        batch = batches.make(3)
        assert batch.mask is not None
        state = TrainingState(with_overrides(CONFIG, {**OVERRIDES[kind], **overrides}), batches.layout)
        for parameter in state.network.parameters():  # what starts at 0 hides the condition
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
        batch = dataclasses.replace(batch, x_clean=batch.x_clean.double(), noise=batch.noise.double())
        compute_batch_loss(state, state.network.double(), batch, CPU).backward()
        gradients = {name: p.grad for name, p in state.network.named_parameters()}
        assert all(gradient is not None for gradient in gradients.values())  # or DDP would wait for them forever
        return gradients

    whole = compute()
    first, second = (compute(rank=rank, world_size=2) for rank in range(2))
    for name, expected in whole.items():
        torch.testing.assert_close((first[name] + second[name]) / 2, expected, rtol=1e-6, atol=1e-9)
    of_condition = [g for name, g in whole.items() if "returns" in name or "tasks" in name or "withheld" in name]
    assert of_condition
    assert all((gradient != 0).any() for gradient in of_condition)


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_withheld_still_gives_every_weight_a_gradient(merged, kind):
    batches = make_batches(kind, merged, {"network.condition_dropout": 1.0})
    state = TrainingState(with_overrides(CONFIG, OVERRIDES[kind]), batches.layout)
    compute_batch_loss(state, state.network, batches.make(0), CPU).backward()
    for name, parameter in state.network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


SPAN = 15
"""Steps from the first to the last of a window of 8 steps at stride 2."""
AT_REST = np.tile(np.float32([2.5, 2.5, 0, 0]), (32, 1))


def make_accelerated_episode(index, sign):
    """From rest to 1.0 away along x; the first observation does not tell to which side."""
    generator = np.random.default_rng(index)
    t = np.linspace(0, 1, SPAN + 1)
    x0, y0 = generator.uniform(2, 3, 2)
    distance = sign * generator.uniform(0.8, 1.2)
    still = np.zeros_like(t)
    observations = np.stack([x0 + distance * t**2, y0 + still, 2 * distance * t / (0.01 * SPAN), still], axis=1)
    return Episode(
        episode_index=index,
        seed=index,
        behavior="accelerated",
        observations=observations.astype(np.float32),
        actions=generator.uniform(-1, 1, (SPAN, 2)).astype(np.float32),
        rewards=np.full(SPAN, sign, dtype=np.float32),
        terminated=False,
        truncated=True,
    )


def write_two_ways(root, kind):
    """Half the episodes go up and half down: as two tasks, or with returns of 15 and -15."""
    if kind == "returns":
        return write(root / "both", [make_accelerated_episode(i, (-1, 1)[i % 2]) for i in range(64)])
    ways = {"down": -1, "up": 1}
    sources = [
        Source(write(root / name, [make_accelerated_episode(i, sign) for i in range(32)]), name, 1.0)
        for name, sign in ways.items()
    ]
    return merge(sources, root / "both")


@pytest.fixture(scope="module", params=[("task", "transformer"), ("returns", "unet")], ids=KINDS[::-1])
def two_ways(request, tmp_path_factory):
    """The kind of condition, and the checkpoint of a model that was trained with it."""
    kind, network = request.param
    root = tmp_path_factory.mktemp("two_ways")
    overrides = {
        "windows.min_horizon": 8,
        "windows.max_horizon": 8,
        "network.kind": network,
        "network.dim": 32 if network == "transformer" else 16,
        "network.depth": 2,
        "network.num_tasks": 2,
        "diffusion.num_diffusion_steps": 16,
        "training.num_steps": 400,
        "training.batch_size": 64,
        "training.learning_rate": 3e-3,
        "training.num_warmup_steps": 20,
        "training.ema_decay": 0.98,
        "planning.horizon.min": 8,
        "planning.sampling.num_steps": 8,
        "planning.selection.num_candidates": 1,
    }
    config = with_overrides(CONFIG, {**OVERRIDES[kind], **overrides})
    config = dataclasses.replace(config, windows=dataclasses.replace(config.windows, goal_columns=()))
    batches = TrainingBatches(config, write_two_ways(root, kind))
    state = TrainingState(config, batches.layout)
    train(state, batches)
    save_checkpoint(
        root / "checkpoint",
        config=config,
        layout=batches.layout,
        step=state.step,
        normalizer=batches.normalizer,
        weights=state.average_weights(),
        dataset={},
        training_state=state.state_dict(),
        return_range=batches.return_range,
    )
    return kind, root / "checkpoint"


def ask_for(kind, way):
    return {"condition.task": way} if kind == "task" else {"condition.target_return": (-15.0, 15.0)[way]}


def plan_distances(planner):
    """How far plans from rest go along x."""
    plans = planner.plan(AT_REST, None, torch.Generator().manual_seed(0), horizons=(8,))
    return np.array([plan.observations[-1, 0] - plan.observations[0, 0] for plan in plans])


def test_checkpoint_keeps_the_range_of_returns(two_ways):
    kind, path = two_ways
    expected = (-15.0, 15.0) if kind == "returns" else None
    assert load_checkpoint(path).return_range == load_planner(path).model.return_range == expected


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_plans_do_what_they_are_told(two_ways, scale):
    kind, path = two_ways
    settings = load_planner(path).settings
    down, up = (
        plan_distances(load_planner(path, with_overrides(settings, {"condition.scale": scale, **ask_for(kind, way)})))
        for way in (0, 1)
    )
    assert (down < -0.5).mean() > 0.9
    assert (up > 0.5).mean() > 0.9
    if scale == 1:
        assert down.mean() == pytest.approx(-1, abs=0.3)
        assert up.mean() == pytest.approx(1, abs=0.3)


def test_scale_0_ignores_what_is_told(two_ways):
    kind, path = two_ways
    untold = load_planner(path)
    distances = plan_distances(untold)
    assert 0.15 < (distances > 0).mean() < 0.85
    for way in (0, 1):
        told = with_settings(untold, {"condition.scale": 0.0, **ask_for(kind, way)})
        np.testing.assert_array_equal(plan_distances(told), distances)
        assert (plan_distances(with_settings(told, {"condition.scale": 1.0})) != distances).any()


def test_model_is_asked_only_for_what_it_was_told(two_ways, tmp_path):
    kind, path = two_ways
    planner = load_planner(path)
    other = {"task": "returns", "returns": "task"}[kind]
    with pytest.raises(PlanningError, match=rf"trained with network\.condition {kind}"):
        with_settings(planner, ask_for(other, 0))
    state = TrainingState(CONFIG, planner.model.layout)
    save_checkpoint(
        tmp_path,
        config=CONFIG,
        layout=planner.model.layout,
        step=0,
        normalizer=planner.model.normalizer,
        weights=state.average_weights(),
        dataset={},
        training_state=state.state_dict(),
    )
    for kind, name in (("task", "task"), ("returns", "target_return")):
        settings = with_overrides(CONFIG.planning, ask_for(kind, 0))
        with pytest.raises(
            PlanningError, match=rf"planning\.condition\.{name}: expected none, .* network\.condition none"
        ):
            load_planner(tmp_path, settings)
