import pytest
import torch

from diffplan.config import NetworkConfig
from diffplan.networks.condition import ConditionEmbedding
from diffplan.networks.factory import make_network

KINDS = ["unet", "transformer"]
GIVEN = {"returns": torch.tensor([0.0, 0.3, 1.0]), "task": torch.tensor([0, 1, 2])}


def make(kind, condition):
    torch.manual_seed(0)
    num_tasks = 3 if condition == "task" else 0
    network = make_network(4, NetworkConfig(kind=kind, dim=16, depth=2, condition=condition, num_tasks=num_tasks), 8)
    with torch.no_grad():  # as after some training: what starts at 0 does so no longer
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def run(network, condition):
    x = torch.randn(3, 8, 4, generator=torch.Generator().manual_seed(1))
    return network(x, torch.tensor([0, 5, 9]), condition=condition)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("condition", GIVEN)
def test_output_depends_on_the_condition_of_its_own_row_only(kind, condition):
    network = make(kind, condition)
    given = GIVEN[condition]
    changed = given.clone()
    changed[1] = given[2]
    first, second = run(network, given), run(network, changed)
    torch.testing.assert_close(first[[0, 2]], second[[0, 2]])
    assert (first[1] - second[1]).abs().max() > 1e-4
    withheld = run(network, None)
    assert ((first - withheld).abs().amax(dim=(1, 2)) > 1e-4).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("condition", GIVEN)
def test_nan_is_a_condition_withheld(kind, condition):
    network = make(kind, condition)
    partly = GIVEN[condition].float()
    partly[1] = torch.nan
    output = run(network, partly)
    torch.testing.assert_close(output[[0, 2]], run(network, GIVEN[condition])[[0, 2]])
    torch.testing.assert_close(output[1], run(network, None)[1])


@pytest.mark.parametrize("kind", KINDS)
def test_label_below_0_is_withheld(kind):
    network = make(kind, "task")
    output = run(network, torch.tensor([0, -1, -7]))
    torch.testing.assert_close(output[1:], run(network, None)[1:])
    torch.testing.assert_close(output[0], run(network, GIVEN["task"])[0])


def test_labels_may_be_floats():
    network = make("unet", "task")
    torch.testing.assert_close(run(network, GIVEN["task"].double()), run(network, GIVEN["task"]), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_return_below_0_is_no_withheld_one(kind):
    network = make(kind, "returns")
    assert (run(network, torch.full((3,), -0.5)) - run(network, None)).abs().max() > 1e-4


@pytest.mark.parametrize("condition", GIVEN)
def test_gradients_are_finite_where_conditions_are_withheld(condition):
    network = make("unet", condition)
    partly = GIVEN[condition].float()
    partly[0] = torch.nan
    run(network, partly).square().sum().backward()
    gradients = [parameter.grad for parameter in network.condition.parameters()]
    assert all(gradient is not None and torch.isfinite(gradient).all() and gradient.any() for gradient in gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_condition_is_refused_by_a_network_that_takes_none(kind):
    network = make(kind, "none")
    with pytest.raises(ValueError, match=r"^condition: this network takes none .*$"):
        run(network, torch.zeros(3))


def test_unknown_label_is_refused():
    network = make("unet", "task")
    with pytest.raises(ValueError, match=r"^condition: expected task labels below 3, got 3$"):
        run(network, torch.tensor([0, 3, -1]))


@pytest.mark.parametrize("kind", KINDS)
def test_network_without_condition_has_no_parameters_for_one(kind):
    assert not any("condition" in name for name in make(kind, "none").state_dict())
    embedding = torch.randn(2, 8)
    assert ConditionEmbedding(NetworkConfig(), 8)(embedding, None) is embedding
