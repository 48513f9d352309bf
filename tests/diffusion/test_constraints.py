import pytest
import torch

from diffplan.diffusion.constraints import endpoint_mask, fix, no_constraints


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_projection_changes_exactly_the_fixed_entries_and_is_idempotent():
    values = torch.tensor([[1.5, -2.0], [0.25, 4.0]])
    constraints = fix(fix(no_constraints(2, 5, 3), 0, [0, 2], values), -1, [1], values[:, :1])
    x = draw(2, 5, 3)
    projected = constraints.project(x)
    expected = x.clone()
    expected[:, 0, 0], expected[:, 0, 2], expected[:, 4, 1] = values[:, 0], values[:, 1], values[:, 0]
    torch.testing.assert_close(projected, expected, rtol=0, atol=0)
    torch.testing.assert_close(constraints.project(projected), projected, rtol=0, atol=0)


def test_no_constraints_change_nothing():
    x = draw(2, 4, 3)
    torch.testing.assert_close(no_constraints(2, 4, 3).project(x), x, rtol=0, atol=0)


def test_adding_a_constraint_leaves_the_old_ones_alone():
    before = no_constraints(2, 4, 3)
    fix(before, 1, [0], torch.ones(2, 1))
    assert not before.mask.any()
    assert not before.values.any()


@pytest.mark.parametrize("step", [4, -5, 100])
def test_step_outside_the_plan_is_refused(step):
    with pytest.raises(ValueError, match=rf"plan of horizon 4, got {step}"):
        fix(no_constraints(1, 4, 3), step, [0], torch.zeros(1, 1))


@pytest.mark.parametrize("step", [3, -1])
def test_contradiction_is_refused_whichever_way_the_step_is_counted(step):
    constraints = fix(no_constraints(2, 4, 3), 3, [0, 1], torch.zeros(2, 2))
    with pytest.raises(ValueError, match="fixed before to other values"):
        fix(constraints, step, [1], torch.tensor([[0.0], [0.5]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_same_value_may_be_fixed_twice(dtype):
    values = torch.full((2, 1), 0.1, dtype=dtype)  # 0.1 differs between the two types
    once = fix(no_constraints(2, 4, 3), 2, [1], values)
    twice = fix(once, 2, [1], values)
    torch.testing.assert_close(twice.values, once.values, rtol=0, atol=0)


def test_endpoint_mask_is_the_start_and_the_goal():
    mask = endpoint_mask(4, 3, start=(1, 2), goal=(1,))
    assert mask.nonzero().tolist() == [[0, 0, 1], [0, 0, 2], [0, 3, 1]]
