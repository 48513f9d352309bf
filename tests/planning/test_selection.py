"""The order of candidates."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from diffplan.planning.selection import VIOLATION_TOLERANCE, rank

# Few different values, so that ties and values at a limit are met.
ERRORS = st.sampled_from([0.0, 0.5, 1.0, 1.5, 7.0])
VIOLATIONS = st.sampled_from([0.0, VIOLATION_TOLERANCE / 2, VIOLATION_TOLERANCE, 0.1, 3.0])
SCORES = st.sampled_from([-1e9, -2.0, 0.0, 1e-3, 5.0])


@st.composite
def cases(draw):
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 6)))
    violations, errors, scores = (draw(arrays.arrays(float, shape, elements=e)) for e in (VIOLATIONS, ERRORS, SCORES))
    return (
        violations,
        errors,
        draw(arrays.arrays(bool, shape)),
        draw(st.none() | st.just(scores)),
        draw(st.sampled_from(["consistency", "guide"])),
    )


@given(cases())
def test_order_is_by_limits_then_consistency_then_the_guide_if_asked_then_speed_error(case):
    violations, errors, consistent, scores, selection = case
    order = rank(*case)
    for i, row in enumerate(order):
        assert sorted(row.tolist()) == list(range(violations.shape[1]))

        def worth(j, i=i):
            violated = violations[i, j] > VIOLATION_TOLERANCE
            by_guide = selection == "guide" and scores is not None and consistent[i, j]
            return (
                violations[i, j] if violated else 0.0,
                not consistent[i, j],
                -scores[i, j] if by_guide else 0.0,
                errors[i, j],
            )

        worths = [worth(j) for j in row]
        assert worths == sorted(worths)


@given(cases(), st.randoms(use_true_random=False))
def test_the_best_is_as_good_however_candidates_are_numbered(case, random):
    violations, errors, consistent, scores, selection = case
    numbers = list(range(violations.shape[1]))
    random.shuffle(numbers)
    renumbered = (violations[:, numbers], errors[:, numbers], consistent[:, numbers])
    best = rank(*case)[:, 0]
    other = rank(*renumbered, None if scores is None else scores[:, numbers], selection)[:, 0]
    for i, (one, two) in enumerate(zip(best, np.array(numbers)[other], strict=True)):
        assert errors[i, one] == errors[i, two]
        assert consistent[i, one] == consistent[i, two]
        assert (violations[i, one] > VIOLATION_TOLERANCE) == (violations[i, two] > VIOLATION_TOLERANCE)


@given(cases())
def test_environments_are_ranked_apart(case):
    violations, errors, consistent, scores, selection = case
    whole = rank(*case)
    for i in range(len(whole)):
        part = slice(i, i + 1)
        told = None if scores is None else scores[part]
        alone = rank(violations[part], errors[part], consistent[part], told, selection)
        np.testing.assert_array_equal(alone[0], whole[i])


@pytest.mark.parametrize(
    ("selection", "best"),
    [("consistency", 1), ("guide", 2)],
)
def test_a_case_by_hand(selection, best):
    # The first violates a limit, the last is inconsistent; of the others one is steadier and one scores higher.
    violations = np.array([[0.5, 0.0, 0.0, 0.0]])
    errors = np.array([[0.1, 0.2, 0.3, 9.0]])
    scores = np.array([[9.0, 1.0, 2.0, 8.0]])
    order = rank(violations, errors, errors <= 1.0, scores, selection)[0].tolist()
    assert order == [best, 3 - best, 3, 0]
