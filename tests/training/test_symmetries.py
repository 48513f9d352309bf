"""Symmetries of training windows: what changes, what stays the same, and what is refused."""

import numpy as np
import pytest
import torch
from small_training import CONFIG, write_straight_paths

from diffplan.config import with_overrides
from diffplan.data.format.dataset import open_dataset
from diffplan.errors import ConfigError
from diffplan.tasks.contracts import Symmetry
from diffplan.training.batches import TrainingBatches
from diffplan.training.symmetries import find_symmetries

BOTH = with_overrides(CONFIG, {"windows.columns": "actions_observations", "training.batch_size": 240})


def make_turn(env):
    """Turn the plane by any angle: positions, velocities and actions alike."""
    assert env.env_id == CONFIG.env.env_id

    def turn(observations, actions, draws):
        angles = 2 * torch.pi * draws[:, :1]
        return torch.cat(
            [rotate(observations[:, :, :2], angles), rotate(observations[:, :, 2:], angles)], dim=2
        ), rotate(actions, angles)

    return Symmetry(num_draws=1, apply=turn)


def rotate(pairs, angles):
    if not pairs.shape[2]:
        return pairs
    x, y = pairs.unbind(2)
    return torch.stack([angles.cos() * x - angles.sin() * y, angles.sin() * x + angles.cos() * y], dim=2)


def make_shorter(env):
    return Symmetry(num_draws=0, apply=lambda observations, actions, draws: (observations[:, 1:], actions[:, 1:]))


def make_number(env):
    return 3


def named(*names, **settings):
    paths = tuple(f"test_symmetries:{name}" for name in names)
    return with_overrides(BOTH, {"windows.symmetries": paths, **settings})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("straight") / "dataset"
    write_straight_paths(root)
    return open_dataset(root)


@pytest.fixture(autouse=True)
def _find_this_module(monkeypatch):
    monkeypatch.syspath_prepend(__file__.rpartition("/")[0])


def in_units(batches, batch):
    return batches.normalizer.unnormalize_windows(batch.x_clean)


@pytest.mark.parametrize("columns", ["observations", "actions_observations"])
def test_windows_are_turned_and_everything_else_stays(dataset, columns):
    plain_config = with_overrides(BOTH, {"windows.columns": columns})
    turned_config = named("make_turn", **{"windows.columns": columns})
    plain_batches, turned_batches = TrainingBatches(plain_config, dataset), TrainingBatches(turned_config, dataset)
    plain, turned = plain_batches.make(3), turned_batches.make(3)
    assert torch.equal(plain.noise, turned.noise)
    assert torch.equal(plain.diffusion_step, turned.diffusion_step)
    x, y = in_units(plain_batches, plain), in_units(turned_batches, turned)
    layout = plain_batches.layout
    for pair in (layout.observations.start, layout.observations.start + 2, *([0] if layout.action_dim else [])):
        before, after = x[:, :, pair : pair + 2], y[:, :, pair : pair + 2]
        torch.testing.assert_close(after.norm(dim=2), before.norm(dim=2), atol=1e-3, rtol=1e-4)
        ways = torch.atan2(after[..., 1], after[..., 0]) - torch.atan2(before[..., 1], before[..., 0])
        angles = torch.atan2(ways.sin().mean(dim=1), ways.cos().mean(dim=1))
        # One angle for all steps of a window, and all angles alike among windows.
        torch.testing.assert_close(torch.cos(ways - angles[:, None]), torch.ones_like(ways), atol=1e-3, rtol=0)
        assert np.histogram(angles, bins=4, range=(-np.pi, np.pi))[0].min() > 30


def test_a_turn_is_a_function_of_seed_step_and_row(dataset):
    """Whatever the workers, and whatever came before."""
    config = named("make_turn")
    whole = TrainingBatches(config, dataset)
    whole.make(0)
    expected = whole.make(7).x_clean
    for rank in range(3):
        part = TrainingBatches(config, dataset, rank=rank, world_size=3).make(7).x_clean
        assert torch.equal(part, expected[rank::3])
    assert not torch.equal(whole.make(8).x_clean, expected)


def test_scales_of_changes_are_those_of_changed_windows(dataset):
    """Each direction is as frequent as any other once windows are turned."""
    given = {
        "windows.deltas": True,
        "windows.normalization": "gaussian",
        "windows.min_horizon": 10,
        "network.kind": "mlp",
        "planning.horizon.min": 10,
        "diffusion.clip_denoised": False,
    }
    batches = TrainingBatches(named("make_turn", **given), dataset)
    deltas = batches.normalizer.deltas
    spread = deltas.scale[-1, :2] * batches.normalizer.scale[batches.layout.observations][:2]
    assert spread[0] == pytest.approx(spread[1], rel=0.02)
    assert abs(deltas.center[-1, :2]).max() < 0.05 * deltas.scale[-1, :2].max()


def test_what_is_no_symmetry_is_refused(dataset):
    with pytest.raises(ConfigError, match=r"windows.symmetries: expected .* a Symmetry from an EnvConfig, got int"):
        TrainingBatches(named("make_number"), dataset)
    with pytest.raises(ConfigError, match=r"expected observations and actions of shapes .* from a symmetry, got"):
        TrainingBatches(named("make_shorter"), dataset).make(0)
    with pytest.raises(ConfigError, match=r"windows.symmetries: .*turns"):
        find_symmetries(("turns",), CONFIG.env)
    with pytest.raises(ConfigError, match=r"normalization: expected limits or gaussian where windows.symmetries"):
        named("make_turn", **{"windows.normalization": "quantile"})


def test_a_policy_that_is_told_goals_refuses_symmetries(dataset):
    given = {"training.objective": "behavior_cloning", "windows.goal_columns": (0, 1)}
    with pytest.raises(ConfigError, match=r"expected none for a policy that is told goals, which would stay"):
        TrainingBatches(named("make_turn", **given), dataset)
