from itertools import pairwise

import numpy as np
import pytest
import torch
from gaussian_oracle import compute_alpha_bars
from hypothesis import given
from hypothesis import strategies as st

from diffplan.diffusion.prediction import to_clean, to_target
from diffplan.diffusion.schedule import make_cosine_schedule, make_schedule


@pytest.mark.parametrize("num_diffusion_steps", [1, 2, 20, 64, 256, 1000])
def test_cosine_schedule_is_the_published_one(num_diffusion_steps):
    schedule = make_cosine_schedule(num_diffusion_steps)
    assert schedule.num_diffusion_steps == num_diffusion_steps
    assert schedule.alpha_bar.dtype == torch.float64
    np.testing.assert_allclose(schedule.alpha_bar, compute_alpha_bars(num_diffusion_steps), rtol=1e-9)


@given(st.integers(1, 400))
def test_signal_falls_strictly_and_lies_between_zero_and_one(num_diffusion_steps):
    alpha_bar = make_cosine_schedule(num_diffusion_steps).alpha_bar
    assert (alpha_bar > 0).all()
    assert (alpha_bar < 1).all()
    assert (alpha_bar.diff() < 0).all()


def test_alpha_bar_at_minus_one_is_one():
    schedule = make_cosine_schedule(8)
    assert schedule.alpha_bar_at(-1) == 1.0
    assert schedule.alpha_bar_at(3) == float(schedule.alpha_bar[3])


def test_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="expected 'cosine', got 'linear'"):
        make_schedule("linear", 8)


@given(st.integers(1, 120).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_sampling_steps_descend_from_the_noisiest_to_clean(sizes):
    num_diffusion_steps, num_sampling_steps = sizes
    pairs = make_cosine_schedule(num_diffusion_steps).sampling_steps(num_sampling_steps)
    assert len(pairs) == num_sampling_steps
    assert pairs[0][0] == num_diffusion_steps - 1
    assert pairs[-1][1] == -1
    assert all(step > next_step for step, next_step in pairs)
    assert all(before[1] == after[0] for before, after in pairwise(pairs))
    if num_sampling_steps > 1:
        assert pairs[-1][0] == 0


def test_sampling_steps_of_a_quarter_are_spaced_evenly():
    assert make_cosine_schedule(10).sampling_steps(4) == [(9, 6), (6, 3), (3, 0), (0, -1)]


@pytest.mark.parametrize("num_sampling_steps", [0, -1, 9])
def test_more_sampling_steps_than_the_model_has_are_refused(num_sampling_steps):
    with pytest.raises(ValueError, match=rf"num_sampling_steps: expected 1 to 8 .*got {num_sampling_steps}"):
        make_cosine_schedule(8).sampling_steps(num_sampling_steps)


def test_noise_is_added_in_its_share_row_by_row():
    schedule = make_cosine_schedule(32)
    generator = torch.Generator().manual_seed(0)
    steps = torch.tensor([0, 11, 31])
    x_clean = torch.full((3, 100_000, 2), 2.0, dtype=torch.float64)
    noise = torch.randn(x_clean.shape, generator=generator, dtype=torch.float64)
    x_noisy = schedule.add_noise(x_clean, noise, steps)
    for row, step in zip(x_noisy, steps, strict=True):
        share = compute_alpha_bars(32)[step]
        assert row.mean() == pytest.approx(2 * share**0.5, abs=0.01)
        assert row.var() == pytest.approx(1 - share, rel=0.02)


@pytest.mark.parametrize("prediction", ["clean", "noise", "velocity"])
def test_prediction_leads_back_to_the_clean_trajectory(prediction):
    schedule = make_cosine_schedule(16)
    generator = torch.Generator().manual_seed(0)
    x_clean = torch.randn(16, 4, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(16, 4, 3, generator=generator, dtype=torch.float64)
    steps = torch.arange(16)
    signal, sigma = schedule.signal_and_noise(steps, x_clean)
    target = to_target(prediction, x_clean, noise, signal, sigma)
    x_noisy = schedule.add_noise(x_clean, noise, steps)
    torch.testing.assert_close(to_clean(prediction, target, x_noisy, signal, sigma), x_clean)


def test_targets_are_those_of_the_papers():
    x_clean, noise, signal, sigma = (torch.tensor(v) for v in (2.0, -1.0, 0.8, 0.6))
    assert to_target("clean", x_clean, noise, signal, sigma) == 2.0
    assert to_target("noise", x_clean, noise, signal, sigma) == -1.0
    torch.testing.assert_close(to_target("velocity", x_clean, noise, signal, sigma), torch.tensor(-0.8 - 1.2))
