import pytest
import torch
from torch.nn import functional as F

from diffplan.networks import blocks
from diffplan.networks.blocks import FEW_NUMBERS, mish

SPECIAL = [0.0, -0.0, 1e-30, -1e-30, 19.9, 20.0, 20.1, 88.8, 100.0, 1e10, 3e38]
NEGATIVE = [-1.1924, -20.0, -50.0, -87.4, -103.0, -104.0, -1e4, -3e38]


def make_inputs():
    """Many numbers: dense where Mish bends, spread where it does not, and the hard ones."""
    dense = torch.linspace(-30, 30, 2 * FEW_NUMBERS)
    wide = 10.0 ** torch.linspace(-8, 8, FEW_NUMBERS)
    return torch.cat([dense, wide, -wide, torch.tensor([*SPECIAL, *NEGATIVE])])


@pytest.fixture
def slow_ways(monkeypatch):
    """How often torch's Mish was asked."""
    calls, of_torch = [], F.mish

    def count(x):
        calls.append(x.numel())
        return of_torch(x)

    monkeypatch.setattr(blocks.F, "mish", count)
    return calls


def mish_exactly(x):
    """x tanh(log(1 + e^x)), in double precision."""
    wide = x.double()
    return wide * torch.tanh(torch.log1p(wide.clamp(max=300).exp()).where(wide < 300, wide))


@pytest.mark.parametrize("shape", [(-1,), (3, 1, -1)])
def test_mish_without_gradients_is_the_published_one(shape):
    x = make_inputs()
    x = x[: len(x) // 3 * 3].reshape(shape)
    before = x.clone()
    with torch.no_grad():
        got = mish(x)
    assert torch.equal(x, before)  # it works in place on nothing of the caller's
    assert got.dtype == x.dtype
    torch.testing.assert_close(got.double(), mish_exactly(x), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got, F.mish(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("value", [torch.inf, torch.nan, -torch.inf])
def test_mish_says_of_what_is_no_number_what_that_of_torch_says(value):
    x = torch.zeros(2 * FEW_NUMBERS)
    x[7] = value
    with torch.no_grad():
        torch.testing.assert_close(mish(x), F.mish(x), rtol=0, atol=0, equal_nan=True)


def test_mish_of_many_numbers_goes_the_fast_way(slow_ways):
    many, few = torch.zeros(FEW_NUMBERS), torch.zeros(FEW_NUMBERS - 1)
    with torch.no_grad():
        mish(many)
    mish(many)
    mish(many.requires_grad_())
    assert slow_ways == []
    mish(few)
    assert slow_ways == [FEW_NUMBERS - 1]


def test_gradients_of_mish_are_those_of_the_published_one():
    x = make_inputs().requires_grad_()
    before = x.detach().clone()
    got = mish(x)
    assert torch.equal(x, before)
    torch.testing.assert_close(got.double(), mish_exactly(x), rtol=1e-6, atol=1e-6)
    upstream = torch.linspace(-1, 1, x.numel())
    (gradient,) = torch.autograd.grad(got, x, upstream)
    exact = x.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(F.mish(exact), exact, upstream.double())
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=1e-5)


def test_gradient_of_mish_is_that_of_finite_differences():
    x = torch.linspace(-6, 25, FEW_NUMBERS, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mish, x, fast_mode=True)
