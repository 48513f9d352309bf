import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffplan.diffusion.constraints import bound, endpoint_mask, fix, no_constraints

INF = float("inf")


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# Fixed entries.


def test_projection_changes_exactly_the_fixed_entries():
    values = torch.tensor([[1.5, -2.0], [0.25, 4.0]])
    constraints = fix(fix(no_constraints(2, 5, 3), 0, [0, 2], values), -1, [1], values[:, :1])
    x = draw(2, 5, 3)
    expected = x.clone()
    expected[:, 0, 0], expected[:, 0, 2], expected[:, 4, 1] = values[:, 0], values[:, 1], values[:, 0]
    assert torch.equal(constraints.project(x), expected)
    assert torch.equal(constraints.project_clean(x), expected)


def test_each_row_may_be_fixed_at_a_step_of_its_own():
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    constraints = fix(no_constraints(3, 4, 3), torch.tensor([0, 2, -1]), [2, 0], values)
    x = draw(3, 4, 3)
    expected = x.clone()
    for row, step in enumerate([0, 2, 3]):
        expected[row, step, 2], expected[row, step, 0] = values[row]
    assert torch.equal(constraints.project(x), expected)


def test_negative_steps_count_from_the_end_of_each_trajectory():
    lengths = torch.tensor([2, 5, 3])
    constraints = fix(no_constraints(3, 5, 2, lengths), -1, [1], torch.tensor([[1.0], [2.0], [3.0]]))
    projected = constraints.project(draw(3, 5, 2))
    for row, length in enumerate(lengths):
        assert projected[row, length - 1, 1] == row + 1
        assert (projected[row, length:] == 0).all()
        assert (projected[row, : length - 1] != 0).all()
    per_row = fix(no_constraints(3, 5, 2, lengths), torch.tensor([-2, -1, 0]), [0], torch.full((3, 1), 7.0))
    assert (per_row.project(draw(3, 5, 2)) == 7).nonzero().tolist() == [[0, 0, 0], [1, 4, 0], [2, 0, 0]]


def test_no_constraints_change_nothing():
    x = draw(2, 4, 3)
    assert torch.equal(no_constraints(2, 4, 3).project(x), x)
    assert torch.equal(no_constraints(2, 4, 3).project_clean(x), x)


def test_adding_a_constraint_leaves_the_old_ones_alone():
    before = no_constraints(2, 4, 3)
    fix(before, 1, [0], torch.ones(2, 1))
    fix(before, torch.tensor([1, 2]), [0], torch.ones(2, 1))
    bounded = bound(before, [0], torch.zeros(1, 1), torch.ones(1, 1))
    bound(bounded, [0], torch.full((1, 1), 0.5), torch.ones(1, 1))
    assert not before.mask.any()
    assert not before.values.any()
    assert before.lower is None
    assert not bounded.lower[:, :, 0].any()


def test_endpoint_mask_is_the_start_and_the_goal():
    mask = endpoint_mask(4, 3, start=(1, 2), goal=(1,))
    assert mask.nonzero().tolist() == [[0, 0, 1], [0, 0, 2], [0, 3, 1]]


# Bounds.


def test_bounds_hold_in_clean_plans_only_and_where_they_were_asked_for():
    lower, upper = torch.tensor([[-0.2, -INF]]), torch.tensor([[0.1, 0.3]])
    constraints = bound(no_constraints(2, 5, 3), [2, 0], lower, upper, slice(1, 4))
    x = draw(2, 5, 3)
    expected = x.clone()
    expected[:, 1:4, 2] = x[:, 1:4, 2].clamp(-0.2, 0.1)
    expected[:, 1:4, 0] = x[:, 1:4, 0].clamp(max=0.3)
    assert torch.equal(constraints.project_clean(x), expected)
    assert torch.equal(constraints.project(x), x)
    assert not torch.equal(expected, x)


def test_bounds_add_up_and_rows_may_have_their_own():
    constraints = bound(no_constraints(2, 3, 1), [0], torch.tensor([[-1.0]]), torch.tensor([[1.0]]))
    constraints = bound(constraints, [0], torch.tensor([[0.0], [-2.0]]), torch.tensor([[3.0], [0.5]]))
    inside = constraints.project_clean(10 * draw(2, 3, 1))
    assert (constraints.project_clean(torch.full((2, 3, 1), 9.0))[:, 0, 0] == torch.tensor([1.0, 0.5])).all()
    assert (constraints.project_clean(torch.full((2, 3, 1), -9.0))[:, 0, 0] == torch.tensor([0.0, -1.0])).all()
    assert (inside[0] >= 0).all()
    assert (inside[1] <= 0.5).all()


def test_bounds_do_not_reach_behind_a_trajectory():
    constraints = no_constraints(2, 4, 1, torch.tensor([2, 4]))
    constraints = bound(constraints, [0], torch.tensor([[0.5]]), torch.tensor([[0.7]]))
    projected = constraints.project_clean(draw(2, 4, 1))
    assert (projected[0, 2:] == 0).all()
    assert ((projected[1] >= 0.5) & (projected[1] <= 0.7)).all()


# Contradictions.


@pytest.mark.parametrize("step", [4, -5, 100])
def test_step_outside_the_plan_is_refused(step):
    with pytest.raises(ValueError, match=rf"^constraint: expected a step in a plan of horizon 4, got {step}$"):
        fix(no_constraints(1, 4, 3), step, [0], torch.zeros(1, 1))


@pytest.mark.parametrize(("step", "horizon"), [([0, 3, 0], 3), ([0, 0, -6], 5), (2, 2), (-3, 2)])
def test_step_outside_the_plan_of_its_row_is_refused(step, horizon):
    constraints = no_constraints(3, 5, 1, torch.tensor([2, 3, 5]))
    step = torch.tensor(step) if isinstance(step, list) else step
    with pytest.raises(ValueError, match=rf"plan of horizon {horizon}, got -?\d$"):
        fix(constraints, step, [0], torch.zeros(3, 1))


@pytest.mark.parametrize("step", [3, -1])
def test_contradiction_is_refused_whichever_way_the_step_is_counted(step):
    constraints = fix(no_constraints(2, 4, 3), 3, [0, 1], torch.zeros(2, 2))
    with pytest.raises(
        ValueError, match=r"^constraint: step 3 was fixed before to other values; remove one of the two$"
    ):
        fix(constraints, step, [1], torch.tensor([[0.0], [0.5]]))


def test_contradiction_names_the_step_of_the_row_that_has_it():
    constraints = fix(no_constraints(2, 4, 1), torch.tensor([0, 2]), [0], torch.zeros(2, 1))
    with pytest.raises(ValueError, match="step 2 was fixed before"):
        fix(constraints, torch.tensor([1, 2]), [0], torch.ones(2, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_same_value_may_be_fixed_twice(dtype):
    values = torch.full((2, 1), 0.1, dtype=dtype)  # 0.1 differs between the two types
    once = fix(no_constraints(2, 4, 3), 2, [1], values)
    twice = fix(once, 2, [1], values)
    assert torch.equal(twice.values, once.values)
    assert torch.equal(twice.mask, once.mask)


def test_column_given_twice_is_refused():
    with pytest.raises(ValueError, match=r"^constraint: expected each column once, got \[1, 1\]$"):
        fix(no_constraints(1, 4, 3), 0, [1, 1], torch.zeros(1, 2))


def test_empty_bounds_are_refused():
    constraints = bound(no_constraints(2, 4, 3), [1], torch.tensor([[0.5]]), torch.tensor([[1.0]]), slice(2, 4))
    with pytest.raises(
        ValueError, match=r"^constraint: no value of column 1 is within the bounds of step 2; widen them$"
    ):
        bound(constraints, [1], torch.tensor([[-1.0]]), torch.tensor([[0.4]]))


@pytest.mark.parametrize("bounds_first", [True, False])
@pytest.mark.parametrize("value", [0.6, -0.6])
def test_entry_fixed_outside_its_bounds_is_refused_in_either_order(value, bounds_first):
    steps = [
        functools.partial(bound, columns=[2], lower=torch.tensor([[-0.5]]), upper=torch.tensor([[0.5]])),
        functools.partial(fix, step=-1, columns=[2], values=torch.tensor([[0.0], [value]])),
    ]
    constraints = no_constraints(2, 4, 3)
    first, second = steps if bounds_first else steps[::-1]
    constraints = first(constraints)
    with pytest.raises(
        ValueError, match=r"^constraint: column 2 of step 3 is fixed outside its bounds; change one of the two$"
    ):
        second(constraints)


def test_padding_is_never_outside_bounds():
    constraints = no_constraints(2, 4, 1, torch.tensor([2, 4]))
    bounded = bound(constraints, [0], torch.tensor([[0.5]]), torch.tensor([[0.7]]))
    assert bounded.lower.min() == 0.5


# Properties.


@st.composite
def problems(draw_from):
    """A batch, fixed entries (none twice), bounds that contain them, and lengths or none."""
    batch, horizon, dim = (draw_from(st.integers(1, high)) for high in (3, 6, 4))
    lengths = draw_from(st.none() | st.lists(st.integers(1, horizon), min_size=batch, max_size=batch))
    shortest = horizon if lengths is None else min(lengths)
    cells = [(step, column) for step in range(shortest) for column in range(dim)]
    chosen = draw_from(st.lists(st.sampled_from(cells), unique=True, max_size=5))
    seed = draw_from(st.integers(0, 1000))
    fixes = [
        functools.partial(fix, step=step, columns=[column], values=draw(batch, 1, seed=seed + i).clamp(-0.9, 0.9))
        for i, (step, column) in enumerate(chosen)
    ]
    columns = draw_from(st.lists(st.integers(0, dim - 1), unique=True, max_size=dim))
    widths = draw(1, len(columns), seed=seed).abs() + 0.9
    bounds = [
        functools.partial(bound, columns=[c], lower=-widths[:, [i]], upper=widths[:, [i]])
        for i, c in enumerate(columns)
    ]
    empty = no_constraints(batch, horizon, dim, None if lengths is None else torch.tensor(lengths))
    return empty, fixes, bounds, 3 * draw(batch, horizon, dim, seed=seed + 99)


@given(problems())
def test_projections_are_idempotent_and_the_nearest_that_is_allowed(problem):
    empty, fixes, bounds, x = problem
    constraints = functools.reduce(lambda c, add: add(c), [*fixes, *bounds], empty)
    projected, clean = constraints.project(x), constraints.project_clean(x)
    assert torch.equal(constraints.project(projected), projected)
    assert torch.equal(constraints.project_clean(clean), clean)
    assert torch.equal(constraints.project_clean(projected), clean)
    mask = constraints.mask.expand_as(x)
    assert torch.equal(clean[mask], constraints.values[mask])
    moved = (clean != x) & ~mask
    if constraints.lower is None:
        assert not moved.any()
    else:
        lower, upper = constraints.lower.expand_as(x), constraints.upper.expand_as(x)
        assert ((clean >= lower) & (clean <= upper))[~mask].all()
        assert ((clean == lower) | (clean == upper))[moved].all()


@given(problems(), st.randoms(use_true_random=False))
def test_order_of_constraints_does_not_matter(problem, random):
    empty, fixes, bounds, x = problem
    constraints = [*fixes, *bounds]
    one = functools.reduce(lambda c, add: add(c), constraints, empty)
    random.shuffle(constraints)
    other = functools.reduce(lambda c, add: add(c), constraints, empty)
    assert torch.equal(one.mask, other.mask)
    assert torch.equal(one.values, other.values)
    assert torch.equal(one.project_clean(x), other.project_clean(x))


@settings(max_examples=30)
@given(problems(), st.integers(-6, 5))
def test_negative_and_positive_steps_are_the_same_steps(problem, step):
    empty, _, _, x = problem
    horizon = x.shape[1]
    lengths = torch.full((len(x),), horizon) if empty.lengths is None else empty.lengths
    values = torch.ones(len(x), 1)
    if not ((-lengths <= step) & (step < lengths)).all():
        with pytest.raises(ValueError, match="expected a step in a plan"):
            fix(empty, step, [0], values)
        return
    counted = torch.where(torch.tensor(step) < 0, lengths + step, step)
    assert torch.equal(fix(empty, step, [0], values).project(x), fix(empty, counted, [0], values).project(x))
