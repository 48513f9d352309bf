import pytest
import torch
from gaussian_oracle import SCHEDULES, compute_alpha_bars
from torch import nn

from diffplan.config import DiffusionConfig
from diffplan.diffusion.constraints import endpoint_mask
from diffplan.diffusion.denoiser import Denoiser
from diffplan.diffusion.loss import compute_loss, make_loss_weights, make_snr_weights
from diffplan.diffusion.prediction import to_clean, to_target
from diffplan.diffusion.value_loss import compute_value_loss
from diffplan.errors import ConfigError

BATCH, HORIZON, DIM = 5, 4, 3
MASK = endpoint_mask(HORIZON, DIM, start=(1, 2), goal=(1,))
STEPS = torch.tensor([0, 2, 4, 6, 7])
PREDICTIONS = ["clean", "noise", "velocity"]
WEIGHTINGS = ["none", "snr", "min_snr"]


class Free(nn.Module):
    """A network whose output is a parameter; keeps what it was called with."""

    def __init__(self, output):
        super().__init__()
        self.output = nn.Parameter(output.clone())

    def forward(self, x_noisy, diffusion_step, **told):
        self.seen, self.told = (x_noisy, diffusion_step), told
        return self.output


def make_batch():
    generator = torch.Generator().manual_seed(0)
    x_clean, noise, output = (torch.randn(BATCH, HORIZON, DIM, generator=generator) for _ in range(3))
    return x_clean, noise, STEPS, output


def loss_of(output, prediction="clean", weights=None, **kwargs):
    x_clean, noise, steps, _ = make_batch()
    network = Free(output)
    denoiser = Denoiser.make(network, DiffusionConfig(num_diffusion_steps=8, prediction=prediction))
    weights = torch.ones(HORIZON, DIM) if weights is None else weights
    return compute_loss(network, denoiser, x_clean, noise, steps, MASK, weights, **kwargs), network


def make_target(prediction):
    x_clean, noise, steps, _ = make_batch()
    schedule = Denoiser.make(nn.Identity(), DiffusionConfig(num_diffusion_steps=8)).schedule
    return to_target(prediction, x_clean, noise, *schedule.signal_and_noise(steps, x_clean))


@pytest.mark.parametrize("snr_weighting", WEIGHTINGS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_known_entries_cost_nothing_and_have_no_gradient(prediction, snr_weighting):
    wrong_where_known = make_target(prediction) + 100.0 * MASK
    loss, _ = loss_of(wrong_where_known, prediction, snr_weighting=snr_weighting)
    assert loss == 0
    loss, network = loss_of(make_target(prediction) + 1.0, prediction, snr_weighting=snr_weighting)
    loss.backward()
    mask = MASK.expand(BATCH, -1, -1)
    assert (network.output.grad[mask] == 0).all()
    assert (network.output.grad[~mask] > 0).all()


def test_loss_is_the_weighted_mean_written_out():
    x_clean, _, _, output = make_batch()
    weights = torch.arange(1.0, HORIZON * DIM + 1).view(HORIZON, DIM)
    total = 0.0
    for b in range(BATCH):
        for h in range(HORIZON):
            for d in range(DIM):
                if not MASK[0, h, d]:
                    total += float(weights[h, d]) * float(output[b, h, d] - x_clean[b, h, d]) ** 2
    assert loss_of(output, weights=weights)[0].item() == pytest.approx(total / (BATCH * HORIZON * DIM), rel=1e-5)


def test_network_sees_noise_everywhere_but_in_the_known_entries():
    x_clean, noise, steps, output = make_batch()
    _, network = loss_of(output)
    x_noisy, seen_steps = network.seen
    schedule = Denoiser.make(nn.Identity(), DiffusionConfig(num_diffusion_steps=8)).schedule
    expected = schedule.add_noise(x_clean, noise, steps)
    mask = MASK.expand(BATCH, -1, -1)
    assert torch.equal(x_noisy[mask], x_clean[mask])
    assert torch.equal(x_noisy[~mask], expected[~mask])
    assert torch.equal(seen_steps, steps)


def test_network_is_told_the_condition_where_there_is_one_and_nothing_else():
    *_, output = make_batch()
    assert loss_of(output)[1].told == {}
    condition = torch.linspace(0, 1, BATCH)
    told = loss_of(output, condition=condition)[1].told
    assert told.keys() == {"condition"}
    assert torch.equal(told["condition"], condition)


# Weights of entries.


def test_weights_are_one_without_discount_but_for_the_first_action():
    weights = make_loss_weights(4, 5, 2, DiffusionConfig(action_weight=10.0))
    expected = torch.ones(4, 5)
    expected[0, :2] = 10.0
    assert torch.equal(weights, expected)


def test_discounted_weights_fall_geometrically_around_mean_one():
    weights = make_loss_weights(6, 3, 0, DiffusionConfig(loss_discount=0.5, action_weight=10.0))
    torch.testing.assert_close(weights[1:] / weights[:-1], torch.full((5, 3), 0.5))
    torch.testing.assert_close(weights.mean(dim=0), torch.ones(3))


def test_column_weights_multiply_and_the_first_action_keeps_its_own():
    columns = (2.0, 0.5, 0.0, 3.0)
    config = DiffusionConfig(loss_discount=0.5, action_weight=10.0)
    plain = make_loss_weights(6, 4, 1, config)
    weights = make_loss_weights(6, 4, 1, DiffusionConfig(loss_discount=0.5, action_weight=10.0, column_weights=columns))
    expected = plain * torch.tensor(columns)
    expected[0, 0] = 10.0  # Janner et al.'s release replaces this weight too
    torch.testing.assert_close(weights, expected)


def test_column_weights_weigh_the_errors_of_their_columns():
    x_clean, *_ = make_batch()
    output = x_clean.clone()
    output[:, 1:3] += torch.tensor([1.0, 1.0, 2.0])
    weights = make_loss_weights(HORIZON, DIM, 0, DiffusionConfig(column_weights=(0.0, 3.0, 0.5)))
    expected = 2 * (0.0 * 1 + 3.0 * 1 + 0.5 * 4) / (HORIZON * DIM)
    assert loss_of(output, weights=weights)[0].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("columns", [(1.0,), (1.0, 1.0, 1.0, 1.0)])
def test_another_number_of_column_weights_than_columns_is_refused(columns):
    with pytest.raises(ConfigError, match=rf"^diffusion\.column_weights: expected 3 numbers.*got {len(columns)}$"):
        make_loss_weights(4, 3, 1, DiffusionConfig(column_weights=columns))


# Weights of noise levels.


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("snr_weighting", ["snr", "min_snr"])
def test_all_predictions_have_the_same_loss_for_the_same_clean_plan(snr_weighting, schedule):
    """The weights are on the error of the clean plan, whatever the network predicts: Hang et al. 2023, section 3.4."""
    x_clean, noise, steps, output = (v.double() if v.is_floating_point() else v for v in make_batch())
    nothing_known = torch.zeros_like(MASK)
    ones = torch.ones(HORIZON, DIM, dtype=torch.float64)
    losses = []
    for prediction in PREDICTIONS:
        network = Free(output)
        denoiser = Denoiser.make(
            network, DiffusionConfig(num_diffusion_steps=8, prediction=prediction, schedule=schedule)
        )
        loss = compute_loss(network, denoiser, x_clean, noise, steps, nothing_known, ones, snr_weighting=snr_weighting)
        x_noisy = denoiser.schedule.add_noise(x_clean, noise, steps)
        clean = to_clean(prediction, output, x_noisy, *denoiser.schedule.signal_and_noise(steps, x_noisy))
        alpha_bar = torch.tensor([compute_alpha_bars(8, schedule)[step] for step in steps], dtype=torch.float64)
        snr = alpha_bar / (1 - alpha_bar)
        weights = snr if snr_weighting == "snr" else torch.minimum(snr, torch.tensor(5.0))
        expected = (weights[:, None, None] * (clean - x_clean).square()).mean()
        losses.append((loss.item(), expected.item()))
    for got, expected in losses:
        assert got == pytest.approx(expected, rel=1e-6)


def test_snr_weights_are_those_of_the_paper():
    snr = torch.tensor([0.01, 1.0, 5.0, 100.0], dtype=torch.float64)
    alpha_bar = snr / (1 + snr)
    expected = {
        ("none", "clean"): [1, 1, 1, 1],
        ("none", "noise"): [1, 1, 1, 1],
        ("none", "velocity"): [1, 1, 1, 1],
        ("snr", "clean"): [0.01, 1, 5, 100],
        ("snr", "noise"): [1, 1, 1, 1],
        ("snr", "velocity"): [0.01 / 1.01, 1 / 2, 5 / 6, 100 / 101],
        ("min_snr", "clean"): [0.01, 1, 5, 5],
        ("min_snr", "noise"): [1, 1, 1, 0.05],
        ("min_snr", "velocity"): [0.01 / 1.01, 1 / 2, 5 / 6, 5 / 101],
    }
    for (weighting, prediction), values in expected.items():
        got = make_snr_weights(weighting, prediction, alpha_bar)
        torch.testing.assert_close(got, torch.tensor(values, dtype=torch.float64))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_without_snr_weighting_the_error_of_what_is_predicted_counts(prediction):
    *_, output = make_batch()
    errors = torch.where(MASK, 0.0, output - make_target(prediction)).square()
    assert loss_of(output, prediction, snr_weighting="none")[0].item() == pytest.approx(errors.mean().item(), rel=1e-6)


def test_padding_costs_nothing_under_snr_weighting():
    x_clean, *_ = make_batch()
    real = torch.arange(HORIZON) < torch.tensor([4, 1, 2, 3, 4])[:, None]
    wrong_in_padding = x_clean + 9.0 * ~real[:, :, None]
    assert loss_of(wrong_in_padding, real=real, snr_weighting="min_snr")[0] == 0
    assert loss_of(wrong_in_padding, snr_weighting="min_snr")[0] > 0


# Value networks.


class Sum(nn.Module):
    """A value network: a multiple of the sum of the noisy trajectory."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.5))

    def forward(self, x_noisy, diffusion_step, **told):
        self.seen, self.told = (x_noisy, diffusion_step), told
        return self.factor * x_noisy.sum(dim=(1, 2))


def value_loss(real=None):
    x_clean, noise, steps, _ = make_batch()
    network, targets = Sum(), torch.linspace(-1, 3, BATCH)
    schedule = Denoiser.make(network, DiffusionConfig(num_diffusion_steps=8)).schedule
    return compute_value_loss(network, schedule, x_clean, noise, steps, MASK, targets, real), network, targets


def test_value_loss_is_the_mean_squared_error_on_noisy_trajectories_with_known_entries_in_place():
    x_clean, noise, steps, _ = make_batch()
    loss, network, targets = value_loss()
    x_noisy, seen_steps = network.seen
    shares = [compute_alpha_bars(8)[step] for step in steps]
    for row, share in enumerate(shares):
        expected = torch.where(MASK[0], x_clean[row], share**0.5 * x_clean[row] + (1 - share) ** 0.5 * noise[row])
        torch.testing.assert_close(x_noisy[row], expected)
    assert torch.equal(seen_steps, steps)
    assert network.told == {}
    errors = [0.5 * float(x_noisy[row].sum()) - float(targets[row]) for row in range(BATCH)]
    assert loss.item() == pytest.approx(sum(error**2 for error in errors) / BATCH, rel=1e-5)
    loss.backward()
    slope = sum(2 * errors[row] * float(x_noisy[row].sum()) for row in range(BATCH)) / BATCH
    assert network.factor.grad.item() == pytest.approx(slope, rel=1e-5)


def test_value_networks_are_told_how_long_trajectories_are():
    real = torch.arange(HORIZON) < torch.tensor([4, 1, 2, 3, 4])[:, None]
    _, network, _ = value_loss(real)
    assert network.told.keys() == {"lengths"}
    assert network.told["lengths"].tolist() == [4, 2, 2, 3, 4]  # no network takes a trajectory of one step
