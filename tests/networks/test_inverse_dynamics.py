import torch

from diffplan.networks.factory import count_parameters
from diffplan.networks.inverse_dynamics import InverseDynamics


def test_parameters_are_two_hidden_layers():
    assert count_parameters(InverseDynamics(4, 2, hidden_dim=16)) == 8 * 16 + 16 * 16 + 16 * 2 + 2 * 16 + 2 + 4 * 16


def test_leading_dimensions_are_kept():
    network = InverseDynamics(4, 2, hidden_dim=8)
    for leading in [(), (3,), (3, 5), (0, 5)]:
        assert network(torch.zeros(*leading, 4), torch.zeros(*leading, 4)).shape == (*leading, 2)


def test_it_fits_linear_dynamics():
    torch.manual_seed(0)
    network = InverseDynamics(4, 2, hidden_dim=64)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    step, effect = torch.eye(4) + 0.1 * torch.randn(4, 4), torch.randn(2, 4)

    def compute_error(batch_size):
        observation, action = torch.rand(batch_size, 4) * 2 - 1, torch.rand(batch_size, 2) * 2 - 1
        return (network(observation, observation @ step + action @ effect) - action).square().mean()

    for _ in range(300):
        loss = compute_error(128)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert compute_error(1000).item() < 0.02 / 3
