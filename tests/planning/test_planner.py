from collections import Counter

import numpy as np
import pytest
import torch
from straight_line_planner import (
    CONFIG,
    NORMALIZER,
    STEP_SECONDS,
    distance_of,
    make_silent_planner,
    make_straight_planner,
    make_untrained_planner,
    make_ways,
    seeded,
    stack,
)

from diffplan.checkpoint import save_checkpoint
from diffplan.config import with_overrides
from diffplan.data.format.statistics import compute_statistics
from diffplan.data.windows.normalization import Normalizer
from diffplan.errors import CheckpointError, PlanningError
from diffplan.networks.packing import Packings
from diffplan.planning.consistency import compute_speed_errors
from diffplan.planning.loading import load_planner
from diffplan.planning.planner import Planner, with_settings
from diffplan.tasks.pretrained import find_pretrained
from diffplan.training.state import TrainingState

OBSERVATIONS = np.array([[1.1, 1.03, 0.3, -0.2], [3.07, 2.9, -1.0, 4.9], [0.9, 2.2, 0.0, 0.0]])
GOALS = np.array([[3.0, 1.1], [1.01, 0.97], [2.2, 3.3]])


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm_solver"])
@pytest.mark.parametrize("guidance_scale", [0.0, 0.5])
def test_every_plan_starts_and_ends_exactly_where_it_must(sampler, guidance_scale):
    settings = with_overrides(
        CONFIG.planning, {"sampling.sampler": sampler, "guidance.scale": guidance_scale, "selection.num_candidates": 2}
    )
    plans = make_untrained_planner(settings=settings).plan(OBSERVATIONS, GOALS, seeded())
    assert len(plans) == 3
    for plan, observation, goal in zip(plans, OBSERVATIONS.astype(np.float32), GOALS.astype(np.float32), strict=True):
        assert plan.observations.dtype == np.float32
        assert plan.observations.shape == (plan.horizon, 4)
        assert plan.horizon in (4, 8, 12, 16)
        assert (plan.actions, plan.stride, plan.denoising) == (None, 5, None)
        np.testing.assert_array_equal(plan.observations[0], observation)
        np.testing.assert_array_equal(plan.observations[-1, :2], goal)


def test_ends_are_exact_where_normalising_and_back_loses_bits():
    generator = np.random.default_rng(0)
    observations, goals = generator.uniform(0, 4, (200, 4)).astype(np.float32), generator.uniform(0, 4, (200, 2))
    goals = goals.astype(np.float32)
    there_and_back = NORMALIZER.unnormalize(NORMALIZER.normalize(np.hstack([goals, goals])))
    assert (there_and_back[:, :2] != goals).any()
    plans = stack(make_untrained_planner().plan_horizon(observations, goals, 4, seeded()))
    np.testing.assert_array_equal(plans[:, 0], observations)
    np.testing.assert_array_equal(plans[:, -1, :2], goals)


def test_goal_columns_that_are_no_position_end_at_zero():
    config = with_overrides(CONFIG, {"windows.goal_columns": [0, 1, 2, 3]})
    for plan in make_untrained_planner(config).plan(OBSERVATIONS, GOALS, seeded()):
        np.testing.assert_array_equal(plan.observations[-1, 2:], 0)
    free = make_untrained_planner().plan(OBSERVATIONS, GOALS, seeded())
    assert all((plan.observations[-1, 2:] != 0).all() for plan in free)


def test_planned_actions_are_those_of_the_layout():
    config = with_overrides(CONFIG, {"windows.columns": "actions_observations"})
    plans = make_untrained_planner(config, action_dim=2).plan(OBSERVATIONS, GOALS, seeded())
    for plan, observation, goal in zip(plans, OBSERVATIONS.astype(np.float32), GOALS.astype(np.float32), strict=True):
        assert plan.actions.shape == (plan.horizon, 2)
        np.testing.assert_array_equal(plan.observations[0], observation)
        np.testing.assert_array_equal(plan.observations[-1, :2], goal)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm_solver"])
@pytest.mark.parametrize("num_frames", [3, 8])
def test_way_from_noise_to_plan_is_kept_where_asked_for(sampler, num_frames):
    planner = make_untrained_planner(
        settings=with_overrides(
            CONFIG.planning,
            {"sampling.sampler": sampler, "selection.num_candidates": 2, "sampling.num_steps": num_frames},
        )
    )
    plain = planner.plan_horizon(OBSERVATIONS, GOALS, 8, seeded())
    kept = planner.plan_horizon(OBSERVATIONS, GOALS, 8, seeded(), keep_denoising=True)
    for one, other in zip(plain, kept, strict=True):
        np.testing.assert_array_equal(one.observations, other.observations)
        assert other.denoising.shape == (num_frames, 8, 4)
        np.testing.assert_allclose(other.denoising[-1], other.observations, atol=1e-5)
        assert np.abs(other.denoising[0] - other.observations).max() > 0.1


def test_plans_follow_from_the_generator():
    planner = make_untrained_planner()
    first, same, other = (stack(planner.plan_horizon(OBSERVATIONS, GOALS, 8, seeded(s))) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)


def test_guidance_brings_plans_to_the_goal_sooner():
    def mean_distances(scale, num_guide_steps=1):
        planner = make_silent_planner(**{"guidance.scale": scale, "guidance.num_steps": num_guide_steps})
        plans = stack(planner.plan_horizon(OBSERVATIONS, GOALS, 16, seeded()))
        return np.linalg.norm(plans[:, :, :2] - GOALS[:, None], axis=-1).mean(axis=1)

    assert (mean_distances(2.0) < mean_distances(0.0) - 0.01).all()
    assert (mean_distances(2.0, num_guide_steps=3) < mean_distances(2.0) - 0.01).all()


def test_plans_through_quantiles_reach_goals_within_and_beyond_the_data():
    # Skewed positions, velocities that mostly rest.
    generator = np.random.default_rng(0)
    data = np.hstack([generator.gamma(2.0, 0.5, (4000, 2)), generator.normal(0, 2, (4000, 2)).round()])
    normalizer = Normalizer.fit([compute_statistics(data)], "quantile")
    goals = np.array([[0.4, 1.1], [1.0, 0.9], [30.0, -7.0]])

    def make_plans(guidance_scale):
        planner = make_silent_planner(normalizer=normalizer, **{"guidance.scale": guidance_scale})
        return planner.plan_horizon(OBSERVATIONS, goals, 16, seeded(), keep_denoising=True)

    def distances(plans):
        return np.linalg.norm(stack(plans)[:, 1:-1, :2] - goals[:, None], axis=-1).mean(axis=1)

    free, guided = make_plans(0.0), make_plans(2.0)
    for plan, observation, goal in zip(free + guided, [*OBSERVATIONS] * 2, [*goals] * 2, strict=True):
        np.testing.assert_array_equal(plan.observations[-1, :2], goal.astype(np.float32))
        # The ends that the sampler held, before the exact ones are written over them.
        np.testing.assert_allclose(plan.denoising[-1, 0], observation, atol=1e-4)
        np.testing.assert_allclose(plan.denoising[-1, -1, :2], goal, atol=1e-4)
    assert (distances(guided) < distances(free) - 0.01).all()


@pytest.mark.parametrize(
    ("observations", "goals", "message"),
    [
        (OBSERVATIONS[0], GOALS, r"observations: expected shape \(batch, 4\), got \(4,\)"),
        (OBSERVATIONS[:, :3], GOALS, r"observations: expected shape \(batch, 4\), got \(3, 3\)"),
        (OBSERVATIONS, GOALS[:2], r"goals: expected shape \(3, 2\), got \(2, 2\)"),
        (OBSERVATIONS, GOALS[0], r"goals: expected shape \(3, 2\), got \(2,\)"),
        (OBSERVATIONS, OBSERVATIONS, r"goals: expected shape \(3, 2\), got \(3, 4\)"),
        (np.where(OBSERVATIONS == 0, np.nan, OBSERVATIONS), GOALS, "expected finite numbers, got NaN or infinity"),
        (OBSERVATIONS, np.where(GOALS > 3, np.inf, GOALS), "expected finite numbers, got NaN or infinity"),
    ],
)
def test_bad_arrays_are_planning_errors(observations, goals, message):
    planner = make_untrained_planner()
    with pytest.raises(PlanningError, match=message):
        planner.plan(observations, goals, seeded())
    with pytest.raises(PlanningError, match=message):
        planner.plan_horizon(observations, goals, 8, seeded())


@pytest.mark.parametrize("limits", [np.ones(2), np.ones((3, 1)), np.ones(0), 1.0, [1.0] * 4])
def test_limits_are_one_for_each_observation(limits):
    planner, observations, goals = make_untrained_planner(), np.ones((3, 4)), np.ones((3, 2))
    previous = planner.plan_horizon(observations, goals, 8, seeded())
    for ask in (
        lambda: planner.plan(observations, goals, seeded(), max_speed_errors=limits),
        lambda: planner.replan(previous, np.zeros(3, int), observations, goals, seeded(), max_speed_errors=limits),
    ):
        with pytest.raises(PlanningError, match=r"max_speed_errors: expected shape \(3,\), one for each") as caught:
            ask()
        assert "\n" not in str(caught.value)
    plans = planner.plan(observations, goals, seeded(), max_speed_errors=[0.0, 1e9, 0.0])
    assert [plan.consistent for plan in plans] == [False, True, False]


def test_settings_that_the_model_cannot_serve_are_planning_errors():
    for sampler in ("ddim", "ddpm", "dpm_solver"):
        with pytest.raises(PlanningError, match=r"planning\.sampling\.num_steps: expected at most 8.*got 9"):
            make_untrained_planner(
                settings=with_overrides(CONFIG.planning, {"sampling.num_steps": 9, "sampling.sampler": sampler})
            )
        make_untrained_planner(
            settings=with_overrides(CONFIG.planning, {"sampling.num_steps": 8, "sampling.sampler": sampler})
        )
    deep = with_overrides(CONFIG, {"network.dim_mults": [1, 1, 1]})
    with pytest.raises(PlanningError, match=r"planning\.horizon\.min: expected at least 4.*got 3"):
        make_untrained_planner(deep, settings=with_overrides(CONFIG.planning, {"horizon.min": 3}))


def test_speed_error_of_a_plan_at_constant_velocity_is_zero():
    times = 0.1 * np.arange(6)[:, None]
    steady = np.concatenate([1.0 + times * [[2.0, -3.0]], np.tile([2.0, -3.0], (6, 1))], axis=1)
    assert compute_speed_errors(steady[None], (0, 1), (2, 3), 0.1) == pytest.approx([0.0], abs=1e-12)


def test_speed_error_is_zero_at_constant_acceleration():
    times = 0.1 * np.arange(6)[:, None]
    plan = np.concatenate([times**2 / 2 * 4.0, times * 4.0], axis=1)
    assert compute_speed_errors(plan[None], (0,), (1,), 0.1) == pytest.approx([0.0], abs=1e-12)


def test_speed_error_of_a_teleport_is_its_speed():
    plans = np.zeros((2, 5, 4))
    plans[0, 3:, 1] = 0.6  # 0.6 units within 0.2 s, at rest
    plans[1, :, 2] = -1.5  # says that it moves, but does not
    errors = compute_speed_errors(plans, position_columns=(0, 1), velocity_columns=(2, 3), step_seconds=0.2)
    assert errors == pytest.approx([3.0, 1.5])


def test_speed_error_without_positions_is_zero():
    assert compute_speed_errors(np.ones((3, 4, 2)), (), (), 0.1).tolist() == [0, 0, 0]


def test_shortest_consistent_horizon_is_taken_in_each_environment():
    planner, network = make_straight_planner()
    plans = planner.plan(*make_ways([8, 4, 16, 8]), seeded())
    assert [plan.horizon for plan in plans] == [8, 4, 16, 8]
    assert all(plan.consistent for plan in plans)
    assert all(plan.speed_error < 1e-3 for plan in plans)
    assert max(Counter(network.batches[0]).values()) <= 4  # each horizon once for each environment


@pytest.mark.parametrize("num", [1, 3, 40])
def test_shortest_consistent_horizon_is_the_same_alone_and_among_many(num):
    wanted = np.random.default_rng(0).choice([4, 8, 12, 16], 40)
    planner, _ = make_straight_planner()
    observations, goals = make_ways(wanted)
    found = []
    for first in range(0, 40, num):
        part = slice(first, first + num)
        found += [plan.horizon for plan in planner.plan(observations[part], goals[part], seeded())]
    assert found == wanted.tolist()


def test_none_is_planned_again_once_it_has_its_plan():
    wanted = [4] * 100 + [8] * 50 + [12] * 25 + [16] * 25
    planner, network = make_straight_planner()
    planner.plan(*make_ways(wanted), seeded())
    drawn = Counter(horizon for batch in network.batches for horizon in batch)
    assert drawn[4] == 200
    assert (drawn[8], drawn[12]) == (100, 50)
    assert drawn[16] <= 50  # few are left by then, so this horizon may be drawn together with the one before


def test_few_environments_have_several_horizons_drawn_at_once():
    planner, network = make_straight_planner()
    (plan,) = planner.plan(*make_ways([12]), seeded())
    assert plan.horizon == 12
    assert len(network.batches) == 1
    assert len(set(network.batches[0])) > 1


def test_horizon_too_short_is_inconsistent_by_the_speed_that_it_would_need():
    planner, _ = make_straight_planner()
    (plan,) = planner.plan_horizon(*make_ways([12]), 4, seeded())
    assert plan.speed_error == pytest.approx(distance_of(12, 2.0) / (3 * STEP_SECONDS) - 2.0, rel=1e-4)
    assert not plan.consistent


def test_wider_limit_takes_a_shorter_horizon():
    needed = distance_of(12, 2.0) / (7 * STEP_SECONDS) - 2.0  # of a plan of horizon 8
    for limit, horizon in [(0.99 * needed, 12), (1.01 * needed, 8)]:
        planner, _ = make_straight_planner(**{"horizon.max_speed_error": limit})
        (plan,) = planner.plan(*make_ways([12]), seeded())
        assert (plan.horizon, plan.consistent) == (horizon, True)
    planner, _ = make_straight_planner()
    plans = planner.plan(*make_ways([12, 12]), seeded(), max_speed_errors=np.array([0.99, 1.01]) * needed)
    assert [plan.horizon for plan in plans] == [12, 8]


def test_longest_horizon_is_taken_where_none_is_consistent():
    planner, _ = make_straight_planner()
    plans = planner.plan(*make_ways([40, 8]), seeded())
    assert [(plan.horizon, plan.consistent) for plan in plans] == [(16, False), (8, True)]


def test_most_consistent_candidate_is_kept():
    planner, network = make_straight_planner(speed_offsets=(3.0, -1.0, 2.0), **{"selection.num_candidates": 3})
    plans = planner.plan_horizon(*make_ways([8, 8]), 8, seeded())
    assert network.batches == [(8,) * 6]
    # Of rows offset by 3, -1 and 2 the second, in both environments.
    assert [plan.speed_error for plan in plans] == pytest.approx([1.0, 1.0], rel=1e-3)
    for plan in plans:
        np.testing.assert_allclose(plan.observations[1:, 2], 1.0, atol=1e-4)


def test_candidates_belong_to_their_environments():
    planner = make_untrained_planner(settings=with_overrides(CONFIG.planning, {"selection.num_candidates": 4}))
    plans = planner.plan_horizon(OBSERVATIONS, GOALS, 8, seeded())
    np.testing.assert_array_equal(stack(plans)[:, 0], OBSERVATIONS.astype(np.float32))
    np.testing.assert_array_equal(stack(plans)[:, -1, :2], GOALS.astype(np.float32))
    single = make_untrained_planner().plan_horizon(
        np.repeat(OBSERVATIONS, 4, axis=0), np.repeat(GOALS, 4, axis=0), 8, seeded()
    )
    errors = np.array([plan.speed_error for plan in single]).reshape(3, 4)
    assert [plan.speed_error for plan in plans] == pytest.approx(errors.min(axis=1).tolist())


def test_settings_are_changed_in_a_copy():
    planner = make_untrained_planner()
    changed = with_settings(planner, {"selection.num_candidates": 3})
    assert (changed.settings.selection.num_candidates, planner.settings.selection.num_candidates) == (3, 1)
    assert changed.model.denoiser is planner.model.denoiser
    with pytest.raises(PlanningError, match=r"sampling\.num_steps"):
        with_settings(planner, {"sampling.num_steps": 99})


def test_planner_from_a_checkpoint_plans_with_the_averaged_weights(tmp_path):
    planner = make_untrained_planner()
    state = TrainingState(CONFIG, planner.model.layout)
    state.network.load_state_dict(planner.model.denoiser.network.state_dict())
    state.update_average()
    state.network.final[1].weight.data.zero_()
    save_checkpoint(
        tmp_path,
        config=CONFIG,
        layout=planner.model.layout,
        step=0,
        normalizer=NORMALIZER,
        weights=state.average_weights(),
        dataset={},
        training_state=state.state_dict(),
    )
    loaded = load_planner(tmp_path)
    assert isinstance(loaded, Planner)
    assert loaded.settings == CONFIG.planning
    np.testing.assert_array_equal(
        stack(loaded.plan_horizon(OBSERVATIONS, GOALS, 8, seeded())),
        stack(planner.plan_horizon(OBSERVATIONS, GOALS, 8, seeded())),
    )
    settings = with_overrides(CONFIG.planning, {"selection.num_candidates": 5})
    assert load_planner(str(tmp_path), settings).settings == settings
    with pytest.raises(PlanningError, match=r"sampling\.num_steps"):
        load_planner(tmp_path, with_overrides(settings, {"sampling.num_steps": 9}))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: the file is missing"):
        load_planner(tmp_path)


def test_all_passes_of_a_draw_share_one_packing(monkeypatch):
    made = {}
    get = Packings.of

    def watch(packings, lengths, multiple):
        packing = get(packings, lengths, multiple)
        made.setdefault(packings, []).append(packing)
        return packing

    monkeypatch.setattr(Packings, "of", watch)
    planner = load_planner(find_pretrained("maze2d-umaze"))
    observations, goals = np.array([[1, 1, 0, 0], [1, 2, 0, 0]], np.float32), np.array([[3, 1], [1, 1]])
    plans = planner.plan(observations, goals, torch.Generator().manual_seed(0))
    assert plans[0].horizon != plans[1].horizon
    assert any(len(packings) > 1 for packings in made.values())
    assert all(packing is packings[0] for packings in made.values() for packing in packings)
