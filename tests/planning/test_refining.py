"""Plans made a second time, to an end that a function moves to what is possible."""

import numpy as np
import pytest
import torch
from running_point import CONFIG, OFFSETS, make_episode, train_checkpoint, write_line

from diffplan.config import with_overrides
from diffplan.errors import ConfigError, PlanningError
from diffplan.planning.constraints import Fixed
from diffplan.planning.loading import load_planner
from diffplan.planning.planner import with_settings

CONFIG = with_overrides(
    CONFIG,
    {
        "planning.controller": "actions",
        "planning.selection.rule": "consistency",
        "windows.columns": "actions_observations",
        "windows.known_columns": (1,),
    },
)
calls = []


def go_to_whole_meters(first, last):
    """The running point may only stop at whole metres."""
    calls.append((first.copy(), last.copy()))
    moved = last.copy()
    moved[:, 1] = np.rint(last[:, 1])
    return moved


def forget(first, last):
    return last[:, :1]


def divide(first, last):
    return last * np.nan


A_NUMBER = 4.0


@pytest.fixture(autouse=True)
def _find_this_module(monkeypatch):
    monkeypatch.syspath_prepend(__file__.rpartition("/")[0])


@pytest.fixture(scope="module")
def planner(tmp_path_factory):
    root = tmp_path_factory.mktemp("refined")
    episodes = [make_episode(i) for i in range(60)]
    return load_planner(train_checkpoint(CONFIG, write_line(root / "dataset", episodes), root / "checkpoint"))


def refine(planner, name):
    return with_settings(planner, {"selection.refine": f"test_refining:{name}", "selection.num_drafts": 3})


def plan(planner, **named):
    return planner.plan(np.zeros((6, 2)), None, torch.Generator().manual_seed(0), **named)


def test_a_refined_plan_ends_where_the_first_one_was_moved_to(planner):
    import test_refining  # the module as the planner imports it

    test_refining.calls.clear()
    drafts, refined = plan(planner, num_candidates=3), plan(refine(planner, "go_to_whole_meters"))
    (asked,) = test_refining.calls
    np.testing.assert_allclose(asked[1][:, 1], [p.observations[-1, 1] for p in drafts])
    ends = np.array([p.observations[-1, 1] for p in refined])
    np.testing.assert_array_equal(ends, np.rint([p.observations[-1, 1] for p in drafts]))
    # The whole plan leads there, not its last step alone.
    halfway = np.array([p.observations[-2, 1] for p in refined])
    assert np.abs(halfway - ends * OFFSETS[-2] / OFFSETS[-1]).mean() < 0.12


def test_drafts_are_ranked_by_the_guides_but_not_moved_by_them(planner):
    """With a guide for running to the right, the best of many drafts is the end that is refined."""
    import test_refining

    given = {
        "selection.refine": "test_refining:go_to_whole_meters",
        "selection.num_drafts": 32,
        "selection.rule": "guide",
        "guidance.guides": ("observation[:, -1, 1]",),
    }
    means = []
    for scale in (0.0, 30.0):
        test_refining.calls.clear()
        plan(with_settings(planner, {**given, "guidance.scale": scale}))
        means.append(test_refining.calls[0][1][:, 1].mean())
    assert means[0] == pytest.approx(means[1])
    assert means[0] > np.mean([p.observations[-1, 1] for p in plan(planner)]) + 0.5


def test_an_end_that_is_fixed_is_not_refined(planner):
    import test_refining

    test_refining.calls.clear()
    ends = [Fixed([0.3], columns=[1], step=-1)]
    found = plan(refine(planner, "go_to_whole_meters"), constraints=ends)
    assert not test_refining.calls
    assert {p.observations[-1, 1] for p in found} == {np.float32(0.3)}


def test_what_cannot_refine_is_refused(planner):
    with pytest.raises(PlanningError, match=r"refine: expected finite observations of shape \[6, 2\], got shape"):
        plan(refine(planner, "forget"))
    with pytest.raises(PlanningError, match=r"refine: expected finite observations .* got NaN or infinity"):
        plan(refine(planner, "divide"))
    with pytest.raises(PlanningError, match=r"selection.refine: expected a function of first and last observations"):
        refine(planner, "A_NUMBER")
    with pytest.raises(ConfigError, match=r"planning.selection.refine: expected 'nothing' in test_refining"):
        refine(planner, "nothing")


def test_a_model_without_known_columns_cannot_refine(tmp_path):
    config = with_overrides(CONFIG, {"windows.known_columns": (), "training.num_steps": 2})
    data = write_line(tmp_path / "dataset", [make_episode(i) for i in range(8)])
    untold = load_planner(train_checkpoint(config, data, tmp_path / "checkpoint"))
    with pytest.raises(PlanningError, match=r"refine: expected none, .* train with --windows.known_columns"):
        refine(untold, "go_to_whole_meters")


@pytest.mark.parametrize("rule", ["mean", "soft"])
def test_an_average_of_drafts_is_refused(planner, rule):
    with pytest.raises(PlanningError, match=f"for an average of drafts has no end of its own, got {rule}"):
        with_settings(planner, {"selection.refine": "test_refining:go_to_whole_meters", "selection.rule": rule})


def test_a_warm_start_needs_no_drafts(planner):
    """It begins with the rest of the plan before; drafts of its few denoising steps would be noise."""
    import test_refining

    refined = refine(planner, "go_to_whole_meters")
    plans = plan(refined)
    test_refining.calls.clear()
    now = np.stack([p.observations[0] for p in plans])
    refined.replan(plans, np.zeros(6, dtype=int), now, None, torch.Generator().manual_seed(1), warm_start=0.3)
    assert not test_refining.calls
