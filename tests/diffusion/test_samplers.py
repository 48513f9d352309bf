import pytest
import torch
from gaussian_oracle import (
    HORIZON,
    PREDICTIONS,
    SCHEDULES,
    SIZE,
    TRANSITION_DIM,
    even_steps,
    iterate_steps,
    make_oracle,
    measure_law,
    propagate,
    seeded,
    step_coefficients,
    unconstrained,
)
from torch import nn

from diffplan.config import DiffusionConfig
from diffplan.diffusion.constraints import Constraints, no_constraints
from diffplan.diffusion.denoiser import Denoiser
from diffplan.diffusion.samplers import SAMPLERS, sample_ddim, sample_ddpm

STEPS = [11, 8, 6, 3, 0]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sampling_is_the_published_algorithm_draw_for_draw(sampler, prediction, schedule):
    temperature, steps = 0.7, [29, 20, 19, 11, 5, 1]
    denoiser = make_oracle(30, prediction, schedule)
    got = SAMPLERS[sampler](denoiser, unconstrained(5), seeded(9), steps, temperature=temperature)
    generator = seeded(9)

    def draw():
        return temperature * torch.randn(5, HORIZON, TRANSITION_DIM, generator=generator).double().flatten(1)

    x, previous = draw(), 0.0
    for step, _, now, then, before in iterate_steps(denoiser.network.alpha_bars, steps):
        clean = denoiser.network.clean(x, step)
        of_x, of_clean, of_previous, added = step_coefficients(sampler, now, then, before)
        x = of_x * x + of_clean * clean + of_previous * previous
        previous = clean
        if added:
            x = x + added**0.5 * draw()
    torch.testing.assert_close(got.flatten(1), x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_number_of_steps_is_that_many_evenly(sampler):
    denoiser, seen = make_oracle(30), []
    numbered = SAMPLERS[sampler](denoiser, unconstrained(2), seeded(), 7, callback=seen.append)
    assert [state.diffusion_step for state in seen] == even_steps(29, 7)
    assert torch.equal(numbered, SAMPLERS[sampler](denoiser, unconstrained(2), seeded(), even_steps(29, 7)))


def test_ancestral_sampling_takes_all_steps_unless_told():
    denoiser, seen = make_oracle(12), []
    sample_ddpm(denoiser, unconstrained(2), seeded(), callback=seen.append)
    assert [state.diffusion_step for state in seen] == list(range(11, -1, -1))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_callback_sees_every_step(sampler):
    denoiser, seen, inputs = make_oracle(12), [], []
    denoiser.network.register_forward_pre_hook(lambda module, args: inputs.append((args[0].clone(), int(args[1][0]))))
    result = SAMPLERS[sampler](denoiser, unconstrained(3), seeded(), STEPS, callback=seen.append)
    assert [state.index for state in seen] == list(range(5))
    assert [state.diffusion_step for state in seen] == [step for _, step in inputs] == STEPS
    for state, (x, _) in zip(seen[:-1], inputs[1:], strict=True):
        assert torch.equal(state.x_noisy, x)
    for state, (x, step) in zip(seen, list(inputs), strict=True):
        assert torch.equal(state.denoised, denoiser(x, step))
    assert torch.equal(seen[-1].x_noisy, result)
    assert torch.equal(seen[-1].denoised, result)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(
    "steps", [[], [3, 3], [0, 5], [12], [5, -1]], ids=["none", "twice", "ascending", "beyond", "below"]
)
def test_steps_that_the_schedule_does_not_have_are_refused(sampler, steps):
    with pytest.raises(ValueError, match=r"steps: expected diffusion steps from 11 to 0, descending, got \["):
        SAMPLERS[sampler](make_oracle(12), unconstrained(1), seeded(), steps)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_too_many_sampling_steps_are_refused(sampler):
    with pytest.raises(ValueError, match=r"num_sampling_steps: expected 1 to 12"):
        SAMPLERS[sampler](make_oracle(12), unconstrained(1), seeded(), 13)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_temperature_zero_does_not_depend_on_the_generator(sampler):
    denoiser = make_oracle(12)
    first, second = (SAMPLERS[sampler](denoiser, unconstrained(3), seeded(s), STEPS, temperature=0.0) for s in (1, 2))
    assert torch.equal(first, second)
    assert torch.equal(first[0], first[2])
    warm = SAMPLERS[sampler](denoiser, unconstrained(3), seeded(1), STEPS)
    assert (warm[0] - warm[2]).abs().max() > 0.01


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples_follow_from_the_generator(sampler):
    denoiser = make_oracle(12)
    first, same, other = (SAMPLERS[sampler](denoiser, unconstrained(3), seeded(s), STEPS) for s in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("sampler", "num_draws"), [("ddim", 1), ("dpm_solver", 1), ("ddpm", 5)])
def test_deterministic_samplers_draw_once_and_the_ancestral_one_before_each_but_the_last_step(sampler, num_draws):
    used, fresh = seeded(), seeded()
    SAMPLERS[sampler](make_oracle(12), unconstrained(2), used, STEPS)
    for _ in range(num_draws):
        torch.randn(2 * SIZE, generator=fresh)
    assert torch.equal(used.get_state(), fresh.get_state())


# Warm starts.


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_warm_start_is_its_own_recursion(sampler):
    denoiser, temperature, steps = make_oracle(30, schedule="edm"), 0.6, [17, 12, 4, 0]
    initial = torch.randn(5, HORIZON, TRANSITION_DIM, generator=seeded(3), dtype=torch.float64)
    got = SAMPLERS[sampler](
        denoiser, unconstrained(5), seeded(9), steps, initial=initial, temperature=temperature
    ).flatten(1)
    generator = seeded(9)

    def draw():
        return temperature * torch.randn(5, HORIZON, TRANSITION_DIM, generator=generator).double().flatten(1)

    first = denoiser.network.alpha_bars[17]
    x, previous = first**0.5 * initial.flatten(1) + (1 - first) ** 0.5 * draw(), 0.0
    for step, _, now, then, before in iterate_steps(denoiser.network.alpha_bars, steps):
        clean = denoiser.network.clean(x, step)
        of_x, of_clean, of_previous, added = step_coefficients(sampler, now, then, before)
        x = of_x * x + of_clean * clean + of_previous * previous
        previous = clean
        if added:
            x = x + added**0.5 * draw()
    torch.testing.assert_close(got, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_warm_start_from_the_top_samples_in_law_as_from_noise(sampler, schedule):
    denoiser, steps = make_oracle(100, schedule=schedule), even_steps(99, 20)
    num_rows = (20 if sampler == "ddpm" else 1) * SIZE + 1
    initial = torch.linspace(1, -1, SIZE, dtype=torch.float64).view(1, HORIZON, TRANSITION_DIM)
    mean, covariance = measure_law(denoiser, sampler, steps, initial=initial.repeat(num_rows, 1, 1))
    expected_mean, expected_covariance = propagate(denoiser, sampler, steps)
    torch.testing.assert_close(mean, expected_mean, rtol=0, atol=0.01)
    torch.testing.assert_close(covariance, expected_covariance, rtol=1e-3, atol=0)
    lower = even_steps(30, 20)
    mean, covariance = measure_law(denoiser, sampler, lower, initial=initial.repeat(num_rows, 1, 1))
    assert (mean - expected_mean).abs().max() > 0.05  # from lower down it remembers


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_step_from_the_lowest_level_hardly_changes_a_plan(sampler):
    denoiser = make_oracle(100, schedule="edm")
    sigma = 0.002  # of the lowest level
    initial = denoiser.network.mean.view(1, HORIZON, TRANSITION_DIM) + 0.1 * torch.randn(
        8, HORIZON, TRANSITION_DIM, generator=seeded(3), dtype=torch.float64
    )
    got = SAMPLERS[sampler](denoiser, unconstrained(8), seeded(), [0], initial=initial)
    change = (got - initial).abs().max()
    assert 0 < change < 5 * sigma


# Repeated steps.


def sample_by_the_paper(denoiser, sampler, steps, repeats, generator, temperature=1.0, known=None):
    """Lugmayr et al. 2022, Alg. 1: each step taken several times, noised again in between by its own noise."""

    def draw():
        return temperature * torch.randn(5, HORIZON, TRANSITION_DIM, generator=generator).double().flatten(1)

    def put(x):
        return x if known is None else torch.where(known[0], known[1], x)

    x, before = put(draw()), None
    for step, _, now, then, before_alpha_bar in iterate_steps(denoiser.network.alpha_bars, steps):
        for repeat in range(repeats):
            if repeat:
                kept = now / then  # the product of 1 - beta between the two levels
                x = put(kept**0.5 * x + (1 - kept) ** 0.5 * draw())
                before = None  # DPM-Solver++ has no estimate of this trajectory to look back at
            clean = put(denoiser.network.clean(x, step))
            of_x, of_clean, of_previous, added = step_coefficients(
                sampler, now, then, None if before is None else before_alpha_bar
            )
            x = of_x * x + of_clean * clean + (0.0 if before is None else of_previous * before)
            if added:
                x = x + added**0.5 * draw()
            x = put(x)
        before = clean
    return x


@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize("repeats", [1, 2, 3])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_repeated_steps_are_their_own_recursion(sampler, repeats, constrained):
    denoiser, steps = make_oracle(30, schedule="edm"), [29, 20, 19, 11, 5, 0]
    constraints, known = unconstrained(5), None
    if constrained:
        mask = torch.zeros(1, HORIZON, TRANSITION_DIM, dtype=torch.bool)
        mask[:, 1, 0] = mask[:, -1] = True
        values = torch.randn(5, HORIZON, TRANSITION_DIM, generator=seeded(3), dtype=torch.float64)
        constraints = Constraints(mask, torch.where(mask, values, 0.0))
        known = mask.flatten(1), values.flatten(1)
    got = SAMPLERS[sampler](denoiser, constraints, seeded(9), steps, temperature=0.7, repeats=repeats)
    expected = sample_by_the_paper(denoiser, sampler, steps, repeats, seeded(9), 0.7, known)
    torch.testing.assert_close(got.flatten(1), expected, rtol=1e-9, atol=1e-9)
    if constrained:
        assert torch.equal(got[:, 1, 0], values[:, 1, 0])
        assert torch.equal(got[:, -1], values[:, -1])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_steps_taken_once_are_those_without_repeats_to_the_last_bit(sampler):
    denoiser, used, same = make_oracle(12), seeded(), seeded()
    once = SAMPLERS[sampler](denoiser, unconstrained(3), used, STEPS, repeats=1)
    assert torch.equal(once, SAMPLERS[sampler](denoiser, unconstrained(3), same, STEPS))
    assert torch.equal(used.get_state(), same.get_state())
    assert not torch.equal(once, SAMPLERS[sampler](denoiser, unconstrained(3), seeded(), STEPS, repeats=2))


@pytest.mark.parametrize("repeats", [1, 2, 4])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_network_is_asked_at_every_repeat_and_the_callback_called_once_a_step(sampler, repeats):
    denoiser, seen, asked = make_oracle(12), [], []
    denoiser.network.register_forward_pre_hook(lambda module, args: asked.append((args[0].clone(), int(args[1][0]))))
    result = SAMPLERS[sampler](denoiser, unconstrained(2), seeded(), STEPS, repeats=repeats, callback=seen.append)
    assert [step for _, step in asked] == [step for step in STEPS for _ in range(repeats)]
    assert [state.index for state in seen] == list(range(len(STEPS)))
    assert [state.diffusion_step for state in seen] == STEPS
    last_asked = asked[repeats - 1 :: repeats]
    for state, (x, step) in zip(seen, list(last_asked), strict=True):
        assert torch.equal(state.denoised, denoiser(x, step))
    assert torch.equal(seen[-1].x_noisy, result)


# The model.


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_kinds_of_prediction_sample_the_same(sampler):
    samples = [SAMPLERS[sampler](make_oracle(16, p), unconstrained(8), seeded(), 6) for p in PREDICTIONS]
    for other in samples[1:]:
        torch.testing.assert_close(other, samples[0], rtol=1e-8, atol=1e-8)


class Constant(nn.Module):
    def forward(self, x_noisy, diffusion_step):
        return torch.full_like(x_noisy, 3.0)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("clip", "expected"), [(True, 1.0), (False, 3.0)])
def test_estimates_are_clipped_where_the_config_says(sampler, clip, expected):
    denoiser = Denoiser.make(Constant(), DiffusionConfig(num_diffusion_steps=8, clip_denoised=clip))
    assert (denoiser(torch.zeros(2, 3, 2), 4) == expected).all()
    assert (SAMPLERS[sampler](denoiser, no_constraints(2, 3, 2), seeded(), 4) == expected).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_denoiser_is_made_with_the_schedule_of_the_config(schedule):
    denoiser = Denoiser.make(Constant(), DiffusionConfig(num_diffusion_steps=8, schedule=schedule))
    expected = make_oracle(8, schedule=schedule).network.alpha_bars
    torch.testing.assert_close(denoiser.schedule.alpha_bar, torch.tensor(expected, dtype=torch.float64))


def test_sampling_leaves_no_graph():
    network = nn.Linear(TRANSITION_DIM, TRANSITION_DIM)

    class Trainable(nn.Module):
        def forward(self, x_noisy, diffusion_step):
            return network(x_noisy)

    denoiser = Denoiser.make(Trainable(), DiffusionConfig(num_diffusion_steps=8))
    assert not sample_ddim(denoiser, no_constraints(2, 3, 2), seeded(), 4).requires_grad
