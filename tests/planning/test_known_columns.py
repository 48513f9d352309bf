"""Columns that are known at the last step of some windows: the network is told, so plans agree with what is asked."""

import dataclasses

import numpy as np
import pytest
import torch
from running_point import CONFIG, OFFSETS, STEP_SECONDS, make_episode, train_checkpoint, write_line

from diffplan.config import NetworkConfig, with_overrides
from diffplan.errors import ConfigError
from diffplan.networks.factory import make_network
from diffplan.networks.gathering import GatheringNetwork
from diffplan.planning.condition import make_conditioned_denoiser
from diffplan.planning.constraints import Fixed
from diffplan.planning.loading import load_planner
from diffplan.training.batches import TrainingBatches
from diffplan.training.environment import check_environment
from diffplan.training.objectives import make_objective

CONFIG = with_overrides(CONFIG, {"planning.controller": "actions", "windows.columns": "actions_observations"})
TOLD = with_overrides(CONFIG, {"windows.known_columns": (1,), "windows.known_share": 0.7})
SPEEDS = np.array(OFFSETS) * STEP_SECONDS


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """One episode in ten runs to the right."""
    episodes = [
        make_episode(i, lambda generator, i=i: generator.uniform(0.5, 1) * (1 if i % 10 == 0 else -1))
        for i in range(100)
    ]
    return write_line(tmp_path_factory.mktemp("running") / "dataset", episodes)


@pytest.fixture(scope="module")
def planners(dataset, tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    return [
        load_planner(train_checkpoint(config, dataset, root / name))
        for name, config in (("told", TOLD), ("untold", CONFIG))
    ]


def measure_disagreement(planner, speed):
    """How far plans are from running at the speed that is asked for all the time, in m/s."""
    constraints = [Fixed([speed], columns=[1], step=-1, per_second=True)]
    observations = np.array([[phase, 100.0] for phase in np.linspace(-0.9, 0.9, 16)])
    plans = planner.plan(observations, None, torch.Generator().manual_seed(0), constraints=constraints)
    found = np.stack([plan.observations[1:-1, 1] for plan in plans]) / SPEEDS[:-1]
    return abs(found - speed).mean()


def test_a_plan_for_what_is_rare_in_the_data_agrees_with_itself(planners):
    told, untold = (measure_disagreement(planner, 0.3) for planner in planners)
    assert untold > 2 * told


def test_plans_without_the_constraint_are_as_frequent_as_in_the_data(planners):
    told, _ = planners
    plans = told.plan(np.zeros((200, 2)), None, torch.Generator().manual_seed(0))
    speeds = np.array([plan.observations[-1, 1] / SPEEDS[-1] for plan in plans])
    assert (speeds < 0).mean() > 0.6
    assert np.median(abs(speeds)) == pytest.approx(0.3, abs=0.1)


def test_the_network_is_told_in_the_share_of_windows(dataset):
    batches = TrainingBatches(with_overrides(TOLD, {"training.batch_size": 2000}), dataset)
    batch = batches.make(0)
    assert batch.known.float().mean() == pytest.approx(0.7, abs=0.04)
    plain = TrainingBatches(with_overrides(CONFIG, {"training.batch_size": 2000}), dataset).make(0)
    assert plain.known is None
    assert torch.equal(plain.noise, batch.noise)
    assert torch.equal(plain.x_clean, batch.x_clean)


def test_known_entries_have_no_noise_and_no_loss(dataset):
    batches = TrainingBatches(TOLD, dataset)
    objective = make_objective(TOLD)
    objective.make_network(batches.layout)
    batch = batches.make(0)
    seen = []

    class Network(torch.nn.Module):
        def forward(self, x, diffusion_step, known):
            seen.append((x, known))
            return torch.full_like(x, 7.0)

    loss = objective.compute_loss(Network(), batches.layout, batch)
    x, known = seen[0]
    column = batches.layout.observation_columns((1,))[0]
    assert torch.equal(known[:, 0], batch.known)
    exact = x[:, -1, column] == batch.x_clean[:, -1, column]
    assert torch.equal(exact, batch.known)
    far = dataclasses.replace(batch, noise=batch.noise.clone())
    far.noise[batch.known, -1, column] = 1e3
    assert objective.compute_loss(Network(), batches.layout, far) == loss


@pytest.mark.parametrize(("fixed", "expected"), [((), False), ((0,), False), ((0, 1), True)])
def test_the_network_is_told_only_if_all_of_them_are_fixed(planners, fixed, expected):
    """As in training, where all are known or none."""
    told, _ = planners
    model = dataclasses.replace(told.model, known_columns=(0, 1))
    mask = torch.zeros(1, 4, model.layout.transition_dim, dtype=torch.bool)
    mask[:, -1, model.layout.observation_columns(fixed)] = True
    denoiser = make_conditioned_denoiser(model, told.settings, 1, mask)
    assert denoiser.options["known"].tolist() == [[expected, expected]]


def test_calls_of_several_threads_keep_what_they_are_told():
    network = make_network(3, NetworkConfig(kind="mlp", dim=16), 4, num_known=2)
    torch.nn.init.normal_(network.to_output[-1].weight)
    gathering = GatheringNetwork(network)
    flags = [torch.tensor([[True, False]]), torch.tensor([[False, True], [True, True]])]
    calls = [
        (torch.randn(num, 4, 3), torch.tensor([step]), known)
        for num, step, known in ((2, 1, flags[0]), (2, 5, flags[1]), (4, 3, flags[1]))
    ]
    from diffplan.networks.gathering import _Call

    with torch.no_grad():
        waiting = [_Call(x, step, None, None, known=known) for x, step, known in calls]
        gathering._waiting = [*waiting, untold := _Call(*calls[0][:2], None, None)]
        gathering._run_waiting()
        for call, (x, step, known) in zip(waiting, calls, strict=True):
            assert call.error is None
            torch.testing.assert_close(call.output, network(x, step, known=known))
            assert (call.output - network(x, step)).abs().max() > 1e-3
        torch.testing.assert_close(untold.output, network(*calls[0][:2]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"windows.known_columns": (1, 1)}, r"windows\.known_columns: expected distinct columns"),
        ({"windows.known_columns": (0,), "windows.goal_columns": (0,)}, "none of them of a goal"),
        (
            {"windows.known_columns": (0,), "env.goal_columns": (0,), "windows.goal_columns": None},
            "which a goal fixes at the last step",
        ),
        ({"windows.known_share": 1.5}, r"windows\.known_share: expected a number in \[0, 1\]"),
        ({"network.kind": "transformer"}, r"network\.kind: expected mlp"),
    ],
)
def test_columns_that_cannot_be_known_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        with_overrides(TOLD, overrides)


def test_columns_that_the_data_lack_are_refused(dataset):
    with pytest.raises(ConfigError, match=r"windows\.known_columns: expected columns below 2"):
        check_environment(with_overrides(CONFIG, {"windows.known_columns": (2,)}), dataset)
