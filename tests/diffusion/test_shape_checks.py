"""Shapes in signatures are checked in the tests of this directory, as tests/conftest.py promises."""

import jaxtyping
import pytest
import torch

from diffplan.diffusion.schedule import make_schedule


def test_a_tensor_of_another_shape_is_refused():
    schedule = make_schedule("cosine", 8)
    x = torch.zeros(2, 3, 4)
    schedule.add_noise(x, x, torch.tensor([0, 5]))
    with pytest.raises(jaxtyping.TypeCheckError):
        schedule.add_noise(x, x, torch.tensor([[0, 5]]))
