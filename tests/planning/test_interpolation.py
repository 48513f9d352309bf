"""Plans between their steps."""

import numpy as np
import pytest
import torch

from diffplan.config import EnvConfig
from diffplan.diffusion.guidance import PlanBatch
from diffplan.layout import Layout
from diffplan.planning.interpolation import interpolate
from diffplan.types import Plan

# Positions are neither first nor in one block, and a column is neither position nor velocity.
ENV = EnvConfig(env_id="any", position_columns=(0, 3), velocity_columns=(4, 1), step_seconds=0.02)
STRIDE = 5
CUBICS = np.random.default_rng(0).normal(size=(2, 4))


def follow_cubics(env_steps):
    """Observations at environment steps along a cubic in each position; the third column is their number."""
    seconds = np.asarray(env_steps, dtype=np.float64) * ENV.step_seconds
    observations = np.zeros((len(seconds), 5))
    for (position, velocity), cubic in zip(
        zip(ENV.position_columns, ENV.velocity_columns, strict=True), CUBICS, strict=True
    ):
        observations[:, position] = np.polyval(cubic, seconds)
        observations[:, velocity] = np.polyval(np.polyder(cubic), seconds)
    observations[:, 2] = env_steps
    return observations


def make_plan(observations):
    return Plan(np.asarray(observations, dtype=np.float32), None, STRIDE, 0.0, True)


CURVED = make_plan(follow_cubics(STRIDE * np.arange(7)))
LAST = 6 * STRIDE


def test_cubics_and_their_velocities_come_back_exactly():
    env_steps = np.concatenate([np.arange(LAST + 1), np.random.default_rng(1).uniform(0, LAST, 100)])
    np.testing.assert_allclose(interpolate(CURVED, ENV, env_steps, "hermite"), follow_cubics(env_steps), atol=2e-5)


def test_velocities_are_the_derivative_of_the_positions():
    # Of a plan that no cubic passes through.
    plan = make_plan(np.random.default_rng(2).normal(size=(6, 5)))
    env_steps, width = np.array([0.5, 3.3, 7.0, 12.5, 24.9]), 1e-3
    before, here, after = (interpolate(plan, ENV, env_steps + d, "hermite") for d in (-width, 0, width))
    slopes = (after - before)[:, list(ENV.position_columns)] / (2 * width * ENV.step_seconds)
    np.testing.assert_allclose(here[:, list(ENV.velocity_columns)], slopes, rtol=1e-4, atol=1e-4)


def test_straight_lines_come_back_exactly():
    generator = np.random.default_rng(3)
    start, slope = generator.normal(size=5), generator.normal(size=5)
    plan = make_plan(start + STRIDE * np.arange(6)[:, None] * slope)
    env_steps = generator.uniform(0, 5 * STRIDE, 50)
    np.testing.assert_allclose(interpolate(plan, ENV, env_steps), start + env_steps[:, None] * slope, atol=1e-4)


def test_linear_is_halfway_at_half_of_a_step():
    found = interpolate(CURVED, ENV, STRIDE * (np.arange(6) + 0.5), "linear")
    np.testing.assert_allclose(found, (CURVED.observations[:-1] + CURVED.observations[1:]) / 2, atol=1e-6)


@pytest.mark.parametrize("kind", ["linear", "hermite"])
def test_steps_of_the_plan_are_exact_and_its_end_holds(kind):
    plan = make_plan(np.random.default_rng(4).normal(size=(6, 5)))
    found = interpolate(plan, ENV, STRIDE * np.arange(6), kind)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, plan.observations, rtol=1e-12, atol=1e-12)
    beyond = interpolate(plan, ENV, [25, 25.5, 26, 1000], kind)
    np.testing.assert_allclose(beyond, np.tile(plan.observations[-1], (4, 1)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["linear", "hermite"])
def test_a_plan_of_one_step_holds_it(kind):
    plan = make_plan(np.arange(5.0)[None])
    np.testing.assert_array_equal(interpolate(plan, ENV, [0, 3], kind), np.tile(np.arange(5.0), (2, 1)))


def test_without_velocities_everything_is_linear():
    env = EnvConfig(env_id="any", position_columns=(), velocity_columns=())
    env_steps = np.linspace(0, LAST, 20)
    np.testing.assert_array_equal(
        interpolate(CURVED, env, env_steps, "hermite"), interpolate(CURVED, env, env_steps, "linear")
    )


def test_columns_beside_positions_and_velocities_stay_linear():
    found = interpolate(CURVED, ENV, np.arange(LAST + 1), "hermite")
    np.testing.assert_allclose(found[:, 2], np.arange(LAST + 1), atol=1e-5)


def test_guides_see_the_same_path():
    plan = make_plan(np.random.default_rng(5).normal(size=(6, 5)))
    transitions = torch.from_numpy(plan.observations)[None].double()
    batch = PlanBatch(
        transitions, transitions, Layout(5), ENV.position_columns, ENV.velocity_columns, STRIDE * ENV.step_seconds
    )
    path = batch.path(points_per_step=8)[0].numpy()
    found = interpolate(plan, ENV, np.linspace(0, 5 * STRIDE, 5 * 8 + 1), "hermite")
    np.testing.assert_allclose(path, found[:, list(ENV.position_columns)], atol=1e-9)
