import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffplan.errors import ConfigError
from diffplan.evaluation.scores import EpisodeResult
from diffplan.evaluation.unit_results import UnitResults

DESCRIPTION = {"seed": 1, "policy": "baseline:random", "goal": (1.0, 2.0)}


def make_result(episode, score=1.5, time_to_goal_steps=None):
    return EpisodeResult(
        episode=episode,
        seed=2**62 + episode,
        goal=[1.0, 0.1],
        start=[3.0, 1.0, 0.0, -0.3],
        undiscounted_return=score / 3,
        score=score,
        success=time_to_goal_steps is not None,
        time_to_goal_steps=time_to_goal_steps,
        length=300,
        horizon=None,
        plan_speed_error=0.1,
        num_plans=1,
        plan_seconds=0.3,
    )


@settings(max_examples=25)
@given(
    scores=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=4),
    times=st.none() | st.integers(1, 600),
)
def test_what_is_written_is_read_to_the_last_bit(tmp_path_factory, scores, times):
    out = tmp_path_factory.mktemp("evaluation")
    units = {unit: [make_result(unit, score, times)] for unit, score in enumerate(scores)}
    kept = UnitResults(out, DESCRIPTION, resume=False)
    for unit, results in units.items():
        kept.write(unit, results)
    assert UnitResults(out, DESCRIPTION, resume=True).read() == units


def test_without_resume_the_old_units_are_forgotten(tmp_path):
    UnitResults(tmp_path, DESCRIPTION, resume=False).write(0, [make_result(0)])
    assert UnitResults(tmp_path, DESCRIPTION, resume=False).read() == {}


def test_results_of_something_else_are_not_mixed_in(tmp_path):
    UnitResults(tmp_path, DESCRIPTION, resume=False).write(0, [make_result(0)])
    with pytest.raises(ConfigError, match=r"begun with another goal, seed; resume it"):
        UnitResults(tmp_path, {**DESCRIPTION, "seed": 2, "goal": None}, resume=True)
    assert UnitResults(tmp_path, DESCRIPTION, resume=True).read() == {0: [make_result(0)]}


def test_a_unit_cut_short_does_not_count(tmp_path):
    kept = UnitResults(tmp_path, DESCRIPTION, resume=False)
    kept.write(3, [make_result(3)])
    (tmp_path / "units" / ".tmp-killed").write_text(json.dumps([{"episode": 1}])[:9])
    assert list(UnitResults(tmp_path, DESCRIPTION, resume=True).read()) == [3]
    kept.remove()
    assert not (tmp_path / "units").exists()


def test_to_resume_what_never_began_is_to_begin(tmp_path):
    assert UnitResults(tmp_path / "new", DESCRIPTION, resume=True).read() == {}
