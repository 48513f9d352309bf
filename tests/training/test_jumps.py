"""Windows over chosen offsets, changes from the first step, and episodes that go on with their last observation."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_training import CONFIG, make_straight_episode, write_straight_paths

from diffplan.checkpoint import Checkpoint, load_checkpoint, save_planning_checkpoint
from diffplan.config import EnvConfig, with_overrides
from diffplan.data.format.dataset import open_dataset
from diffplan.data.format.writer import create_dataset, write_unit
from diffplan.data.windows.normalization import Deltas, Normalizer
from diffplan.errors import CheckpointError, ConfigError
from diffplan.training.batches import TrainingBatches, find_best
from diffplan.training.loop import train
from diffplan.training.state import TrainingState

OFFSETS = (1, 4, 9)
JUMPS = with_overrides(
    dataclasses.replace(CONFIG, env=EnvConfig(env_id="Hopper-v5")),
    {
        "diffusion.clip_denoised": False,
        "windows.normalization": "gaussian",
        "windows.min_horizon": 4,
        "windows.max_horizon": 4,
        "windows.offsets": OFFSETS,
        "windows.deltas": True,
        "windows.padding": "terminal",
        "windows.columns": "actions_observations",
        "windows.goal_columns": (),
        "network.kind": "mlp",
        "planning.horizon.min": 4,
        "planning.horizon.max": 4,
    },
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Six episodes of 3 to 13 steps, every other of which terminates; later ones have higher returns."""
    root = tmp_path_factory.mktemp("jumps")
    write_straight_paths(root / "made")
    manifest = create_dataset(root / "dataset", open_dataset(root / "made").manifest)
    episodes = []
    for i in range(6):
        whole, length = make_straight_episode(i), 3 + 2 * i
        episodes.append(
            dataclasses.replace(
                whole,
                observations=whole.observations[: length + 1],
                actions=whole.actions[:length],
                rewards=np.full(length, i + 1, dtype=np.float32),
                terminated=i % 2 == 0,
                truncated=i % 2 == 1,
            )
        )
    for unit in range(2):
        write_unit(root / "dataset", manifest, unit, episodes[3 * unit : 3 * unit + 3])
    return open_dataset(root / "dataset"), episodes


def list_windows(episodes):
    """Every window by hand: rows of actions and observations, and whether the episode goes on at each."""
    found = []
    for episode in episodes:
        length = len(episode)
        for first in range(length):
            if not episode.terminated and first + OFFSETS[-1] > length:
                continue
            rows = [min(first + offset, length) for offset in (0, *OFFSETS)]
            actions = [episode.actions[row] if row < length else None for row in rows]
            goes_on = [row < length or not episode.terminated for row in rows]
            found.append((episode.observations[rows], actions, goes_on))
    return found


@pytest.mark.parametrize("storage", ["memory", "mapped", "blocks"])
def test_windows_are_the_rows_at_their_offsets_and_the_last_observation_after_the_end(dataset, storage):
    data, episodes = dataset
    batches = TrainingBatches(with_overrides(JUMPS, {"windows.storage": storage, "training.batch_size": 600}), data)
    expected = list_windows(episodes)
    assert batches.reader.count(4) == len(expected)
    x = batches.make(0).x_clean
    plain = batches.normalizer.unnormalize_windows(x)
    observations = plain[:, :, batches.layout.observations].numpy()
    matches = [
        [i for i, (wanted, _, _) in enumerate(expected) if np.allclose(wanted, got, atol=1e-4)] for got in observations
    ]
    assert {i for found in matches for i in found} == set(range(len(expected)))  # each is drawn, and no other
    for row, found in enumerate(matches):
        assert found
        _, actions, goes_on = expected[found[0]]
        flags = plain[row, :, batches.layout.flag]
        assert flags.tolist() == [1.0 if on else -1.0 for on in goes_on]
        for got, normalized, wanted in zip(plain[row], x[row], actions, strict=True):
            if wanted is None:
                assert (normalized[batches.layout.actions] == 0).all()
            else:
                np.testing.assert_allclose(got[batches.layout.actions], wanted, atol=1e-5)


def test_changes_are_normalised_for_each_step(dataset):
    batches = TrainingBatches(with_overrides(JUMPS, {"training.batch_size": 12_000}), dataset[0])
    x = batches.make(3).x_clean[:, 1:, batches.layout.observations]
    spread = x.std(dim=0)
    moves = spread > 1e-3  # constant velocities do not change
    assert moves.any()
    torch.testing.assert_close(spread[moves], torch.ones_like(spread[moves]), atol=0.05, rtol=0)
    torch.testing.assert_close(x.mean(dim=0), torch.zeros_like(spread), atol=0.05, rtol=0)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.integers(0, 3))
def test_changes_revert_and_their_gradient_reaches_the_first_step(seed, horizon, action_dim):
    generator = torch.Generator().manual_seed(seed)
    windows = torch.randn(20, horizon, action_dim + 3, generator=generator)
    deltas = Deltas.fit(windows, slice(action_dim, action_dim + 3))
    torch.testing.assert_close(deltas.revert(deltas.apply(windows)), windows, atol=1e-5, rtol=1e-5)
    leaf = windows.clone().requires_grad_()
    deltas.apply(leaf)[:, -1, action_dim].sum().backward()
    assert leaf.grad[:, 0, action_dim].lt(0).all()
    assert leaf.grad[:, -1, action_dim].gt(0).all()


def test_memory_mapped_and_every_worker_have_the_same_batches(dataset):
    made = [
        TrainingBatches(with_overrides(JUMPS, {"windows.storage": storage}), dataset[0], rank=rank, world_size=2)
        for storage in ("memory", "mapped")
        for rank in (0, 1)
    ]
    assert len({batches.normalizer.to_json() for batches in made}) == 1
    whole = TrainingBatches(JUMPS, dataset[0]).make(2).x_clean
    for batches in made[:2]:
        assert torch.equal(batches.make(2).x_clean, whole[made.index(batches) :: 2])
    assert torch.equal(made[0].make(2).x_clean, made[2].make(2).x_clean)


def test_a_checkpoint_keeps_what_the_model_space_is(dataset, tmp_path):
    batches = TrainingBatches(JUMPS, dataset[0])
    state = TrainingState(JUMPS, batches.layout)
    train(state, batches)
    weights = state.make_average_network().state_dict()
    save_planning_checkpoint(
        tmp_path, Checkpoint(tmp_path, JUMPS, batches.layout, 4, batches.normalizer, weights, {}, None)
    )
    loaded = load_checkpoint(tmp_path)
    assert loaded.layout == batches.layout
    x = batches.make(0).x_clean
    assert torch.equal(loaded.normalizer.unnormalize_windows(x), batches.normalizer.unnormalize_windows(x))


@pytest.mark.parametrize(
    "change",
    [
        {"scale": [[1.0]]},
        {"scale": [[-1.0] * 2] * 2},
        {"columns": [0, 9]},
        {"columns": "all"},
        {"center": [[math.nan] * 2] * 2},
        {"other": 1},
    ],
)
def test_damaged_scales_of_changes_are_refused(change):
    deltas = {"center": [[0.0] * 2] * 2, "scale": [[1.0] * 2] * 2, "columns": [1, 3], **change}
    text = json.dumps({"kind": "affine", "center": [0.0] * 3, "scale": [1.0] * 3, "deltas": deltas})
    with pytest.raises(CheckpointError, match="expected deltas"):
        Normalizer.from_json(text)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"windows.offsets": (4, 1, 9)}, "ascending"),
        ({"windows.offsets": (0, 1, 9)}, "at least 1"),
        ({"windows.offsets": (1, 9)}, "windows.min_horizon and max_horizon: expected 3"),
        ({"windows.normalization": "limits"}, "windows.normalization: expected gaussian"),
        ({"planning.horizon.max": 8}, "planning.horizon.min and max: expected 4"),
        ({"windows.best_share": 0.0}, "windows.best_share"),
        ({"training.return_weight": -1.0}, "training.return_weight"),
    ],
)
def test_windows_that_contradict_themselves_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        with_overrides(JUMPS, overrides)


@pytest.mark.parametrize(
    ("share", "best"), [(0.2, {5}), (0.3, {5, 4}), (0.5, {5, 4}), (0.55, {5, 4, 3}), (1.0, set(range(6)))]
)
def test_the_best_share_is_of_the_steps_and_by_return(dataset, share, best):
    data, episodes = dataset
    assert sum(len(e) for e in episodes) == 48  # 3, 5, 7, 9, 11 and 13 steps
    assert set(np.flatnonzero(find_best(data, share))) == best


def test_windows_of_the_best_share_come_from_no_other_episode(dataset):
    data, episodes = dataset
    batches = TrainingBatches(with_overrides(JUMPS, {"windows.best_share": 0.3}), data)
    assert batches.reader.count(4) == len(list_windows(episodes[4:]))


def test_weights_of_returns_are_as_documented(dataset):
    data, _ = dataset
    config = with_overrides(
        JUMPS, {"training.return_weight": 3.0, "training.discount": 1.0, "training.batch_size": 600}
    )
    batches = TrainingBatches(config, data)
    low, high = batches.return_range
    weights = batches.make(0).weight.double()
    returns = torch.tensor(
        [(i + 1) * (3 + 2 * i - first) for i in range(6) for first in range(3 + 2 * i)], dtype=torch.float64
    )
    possible = torch.exp(3 * ((returns - low) / (high - low) - 1)).clamp(max=1.0)
    assert (weights[:, None] - possible[None]).abs().amin(dim=1).max() < 1e-5
    assert weights.max() / weights.min() > math.e
    assert TrainingBatches(JUMPS, data).make(0).weight is None


def test_a_weighted_loss_counts_each_window_by_its_weight(dataset):
    batches = TrainingBatches(with_overrides(JUMPS, {"training.return_weight": 2.0}), dataset[0])
    state = TrainingState(JUMPS, batches.layout)
    batch = batches.make(1)
    with torch.no_grad():
        whole = state.objective.compute_loss(state.network, batches.layout, batch)
        rows = [
            state.objective.compute_loss(
                state.network,
                batches.layout,
                dataclasses.replace(
                    batch,
                    x_clean=batch.x_clean[i : i + 1],
                    noise=batch.noise[i : i + 1],
                    diffusion_step=batch.diffusion_step[i : i + 1],
                    weight=None,
                ),
            )
            for i in range(len(batch.x_clean))
        ]
    torch.testing.assert_close(whole, (torch.stack(rows) * batch.weight).mean())
