import math

import numpy as np
import pytest
import torch
from gaussian_oracle import SCHEDULES, compute_alpha_bars, even_steps
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from diffplan.diffusion.denoiser import Denoiser
from diffplan.diffusion.prediction import to_clean, to_target
from diffplan.diffusion.schedule import make_cosine_schedule, make_edm_schedule, make_linear_schedule, make_schedule


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("num_diffusion_steps", [2, 20, 64, 256, 1000])
def test_schedules_are_the_published_ones(num_diffusion_steps, kind):
    schedule = make_schedule(kind, num_diffusion_steps)
    assert schedule.num_diffusion_steps == num_diffusion_steps
    assert schedule.alpha_bar.dtype == torch.float64
    np.testing.assert_allclose(schedule.alpha_bar, compute_alpha_bars(num_diffusion_steps, kind), rtol=1e-9)


@given(st.sampled_from(SCHEDULES), st.integers(1, 400))
def test_signal_falls_strictly_and_lies_between_zero_and_one(kind, num_diffusion_steps):
    alpha_bar = make_schedule(kind, num_diffusion_steps).alpha_bar
    assert (alpha_bar > 0).all()
    assert (alpha_bar < 1).all()
    assert (alpha_bar.diff() < 0).all()
    assert (make_schedule(kind, num_diffusion_steps).log_snr.diff() < 0).all()


def test_linear_schedule_of_1000_steps_is_that_of_ho_et_al():
    alpha_bar = make_linear_schedule(1000).alpha_bar
    betas = 1 - alpha_bar[1:] / alpha_bar[:-1]
    assert float(alpha_bar[0]) == pytest.approx(1 - 1e-4, rel=1e-12)
    assert float(betas[-1]) == pytest.approx(0.02, rel=1e-9)
    np.testing.assert_allclose(betas.diff(), (0.02 - 1e-4) / 999, rtol=1e-6)
    assert float(alpha_bar[-1]) == pytest.approx(4.0358e-5, rel=1e-4)  # as in the code release: nearly no signal


@pytest.mark.parametrize("num_diffusion_steps", [100, 250, 2000])
def test_linear_schedule_of_other_sizes_ends_at_about_the_same_noise(num_diffusion_steps):
    expected = make_linear_schedule(1000).log_snr
    got = make_linear_schedule(num_diffusion_steps).log_snr
    assert float(got[-1]) == pytest.approx(float(expected[-1]), abs=0.4)
    assert float(got[num_diffusion_steps // 2]) == pytest.approx(float(expected[500]), abs=0.1)


@pytest.mark.parametrize("num_diffusion_steps", [2, 18, 1000])
def test_edm_schedule_goes_from_sigma_min_to_sigma_max(num_diffusion_steps):
    alpha_bar = make_edm_schedule(num_diffusion_steps).alpha_bar
    sigma = ((1 - alpha_bar) / alpha_bar).sqrt()
    assert float(sigma[0]) == pytest.approx(0.002, rel=1e-6)
    assert float(sigma[-1]) == pytest.approx(80, rel=1e-9)
    roots = sigma ** (1 / 7)
    np.testing.assert_allclose(roots.diff(), float(roots.diff().mean()), rtol=1e-6)


@pytest.mark.parametrize("kind", ["linear", "edm"])
def test_a_single_step_is_the_noisiest(kind):
    only, many = make_schedule(kind, 1).alpha_bar, make_schedule(kind, 100).alpha_bar
    assert only[0] < 0.01
    if kind == "edm":
        torch.testing.assert_close(only[0], many[-1])


class Recorder(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x_noisy, diffusion_step):
        self.seen = x_noisy
        return self.output


@pytest.mark.parametrize("diffusion_step", [0, 5, 17])
def test_edm_schedule_and_velocity_prediction_are_the_preconditioning_of_edm(diffusion_step):
    """Karras et al. 2022, table 1 at sigma_data = 1: D(y) = c_skip y + c_out F(c_in y)."""
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    sigma = (low + diffusion_step / 17 * (high - low)) ** 7
    c_skip, c_out, c_in = 1 / (sigma**2 + 1), sigma / math.sqrt(sigma**2 + 1), 1 / math.sqrt(sigma**2 + 1)
    x_clean, noise, output = torch.randn(3, 4, 5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = x_clean + sigma * noise
    network = Recorder(-output)  # the velocity is defined with the sign of the noise
    denoiser = Denoiser(network, make_edm_schedule(18), "velocity")
    x_noisy = denoiser.schedule.add_noise(x_clean, noise, torch.full((4,), diffusion_step))
    torch.testing.assert_close(x_noisy, c_in * y)
    torch.testing.assert_close(denoiser(x_noisy, diffusion_step), c_skip * y + c_out * output)
    torch.testing.assert_close(network.seen, c_in * y)
    signal, level = denoiser.schedule.signal_and_noise(torch.full((4,), diffusion_step), x_clean)
    # eq. 8: the effective target of the network
    target = -to_target("velocity", x_clean, noise, signal, level)
    torch.testing.assert_close(target, (x_clean - c_skip * y) / c_out, rtol=1e-6, atol=1e-6)


def test_alpha_bar_at_minus_one_is_one():
    schedule = make_cosine_schedule(8)
    assert schedule.alpha_bar_at(-1) == 1.0
    assert schedule.alpha_bar_at(3) == float(schedule.alpha_bar[3])


def test_log_snr_is_that_of_signal_over_noise():
    schedule = make_cosine_schedule(8)
    signal, noise = schedule.alpha_bar.sqrt(), (1 - schedule.alpha_bar).sqrt()
    torch.testing.assert_close(schedule.log_snr, (signal / noise).log())


def test_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="schedule: expected one of cosine, linear, edm, got 'cosin'"):
        make_schedule("cosin", 8)


# Sampling steps.


@st.composite
def grids(draw_from):
    num_diffusion_steps = draw_from(st.integers(1, 120))
    first = draw_from(st.none() | st.integers(0, num_diffusion_steps - 1))
    most = num_diffusion_steps if first is None else first + 1
    return num_diffusion_steps, draw_from(st.integers(1, most)), first


@pytest.mark.parametrize("spacing", ["uniform", "log_snr"])
@pytest.mark.parametrize("kind", SCHEDULES)
@given(grids())
def test_sampling_steps_descend_from_the_first_to_the_last(kind, spacing, grid):
    num_diffusion_steps, num_sampling_steps, first = grid
    steps = make_schedule(kind, num_diffusion_steps).sampling_steps(num_sampling_steps, spacing, first)
    assert len(steps) == num_sampling_steps
    assert steps == sorted(set(steps), reverse=True)
    assert steps[0] == (num_diffusion_steps - 1 if first is None else first)
    if num_sampling_steps > 1:
        assert steps[-1] == 0


@pytest.mark.parametrize("kind", SCHEDULES)
def test_all_sampling_steps_are_all_diffusion_steps(kind):
    for spacing in ("uniform", "log_snr"):
        assert make_schedule(kind, 30).sampling_steps(30, spacing) == list(range(29, -1, -1))


def test_uniform_steps_are_spaced_evenly():
    schedule = make_cosine_schedule(100)
    assert make_cosine_schedule(10).sampling_steps(4) == [9, 6, 3, 0]
    assert schedule.sampling_steps(8) == even_steps(99, 8)
    assert schedule.sampling_steps(5, first=40) == [40, 30, 20, 10, 0]


@pytest.mark.parametrize("kind", SCHEDULES)
def test_log_snr_steps_are_as_near_to_even_in_log_snr_as_the_schedule_has_it(kind):
    schedule = make_schedule(kind, 4000)
    log_snr = schedule.log_snr
    steps = schedule.sampling_steps(9, "log_snr", first=3600)
    gaps = log_snr[steps].diff()
    # Each step is the nearest, so no further from its place than half the distance to its neighbours.
    width = float(log_snr[0] - log_snr[3600]) / 8
    places = float(log_snr[3600]) + width * torch.arange(9, dtype=torch.float64)
    assert (gaps > 0).all()
    for step, place in zip(steps, places, strict=True):
        assert abs(float(log_snr[step] - place)) <= float((log_snr[:3601] - place).abs().min()) + 1e-12
    uniform = log_snr[schedule.sampling_steps(9, first=3600)].diff()
    assert gaps.std() < uniform.std()


@pytest.mark.parametrize("spacing", ["uniform", "log_snr"])
@pytest.mark.parametrize("num_sampling_steps", [0, -1, 9])
def test_more_sampling_steps_than_the_model_has_are_refused(num_sampling_steps, spacing):
    with pytest.raises(ValueError, match=rf"num_sampling_steps: expected 1 to 8 .*got {num_sampling_steps}"):
        make_cosine_schedule(8).sampling_steps(num_sampling_steps, spacing)
    with pytest.raises(ValueError, match=r"num_sampling_steps: expected 1 to 4 .*got 5"):
        make_cosine_schedule(8).sampling_steps(5, spacing, first=3)


@pytest.mark.parametrize("first", [-1, 8])
def test_first_step_outside_the_schedule_is_refused(first):
    with pytest.raises(ValueError, match=f"first: expected a diffusion step from 0 to 7, got {first}"):
        make_cosine_schedule(8).sampling_steps(1, first=first)


# Noise and predictions.


def test_noise_is_added_in_its_share_row_by_row():
    schedule = make_cosine_schedule(32)
    generator = torch.Generator().manual_seed(0)
    steps = torch.tensor([0, 11, 31])
    x_clean = torch.full((3, 100_000, 2), 2.0, dtype=torch.float64)
    noise = torch.randn(x_clean.shape, generator=generator, dtype=torch.float64)
    x_noisy = schedule.add_noise(x_clean, noise, steps)
    for row, step in zip(x_noisy, steps.tolist(), strict=True):
        share = compute_alpha_bars(32)[step]
        assert row.mean() == pytest.approx(2 * share**0.5, abs=0.01)
        assert row.var() == pytest.approx(1 - share, rel=0.02)


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("prediction", ["clean", "noise", "velocity"])
def test_prediction_leads_back_to_the_clean_trajectory(prediction, kind):
    schedule = make_schedule(kind, 16)
    generator = torch.Generator().manual_seed(0)
    x_clean = torch.randn(16, 4, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(16, 4, 3, generator=generator, dtype=torch.float64)
    steps = torch.arange(16)
    signal, sigma = schedule.signal_and_noise(steps, x_clean)
    target = to_target(prediction, x_clean, noise, signal, sigma)
    x_noisy = schedule.add_noise(x_clean, noise, steps)
    torch.testing.assert_close(to_clean(prediction, target, x_noisy, signal, sigma), x_clean, rtol=1e-6, atol=1e-6)


def test_targets_are_those_of_the_papers():
    x_clean, noise, signal, sigma = (torch.tensor(v) for v in (2.0, -1.0, 0.8, 0.6))
    assert to_target("clean", x_clean, noise, signal, sigma) == 2.0
    assert to_target("noise", x_clean, noise, signal, sigma) == -1.0
    torch.testing.assert_close(to_target("velocity", x_clean, noise, signal, sigma), torch.tensor(-0.8 - 1.2))
