"""Planners from checkpoints with the models that were fitted to them."""

import numpy as np
import pytest
import torch
from straight_line_planner import CONFIG, NORMALIZER, make_untrained_planner, seeded, stack

from diffplan.checkpoint import save_checkpoint, save_companion
from diffplan.config import with_overrides
from diffplan.errors import CheckpointError, PlanningError
from diffplan.planning.companions.action_model import ActionModel
from diffplan.planning.companions.horizon_model import HorizonModel
from diffplan.planning.companions.support import Support
from diffplan.planning.loading import load_planner, save_action_model, save_horizon_model, save_support
from diffplan.planning.planner import with_settings
from diffplan.training.state import TrainingState

OBSERVATIONS, GOALS = np.array([[1.1, 1.03, 0.3, -0.2]]), np.array([[3.0, 1.1]])


@pytest.fixture
def checkpoint(tmp_path):
    layout = make_untrained_planner().model.layout
    state = TrainingState(CONFIG, layout)
    save_checkpoint(
        tmp_path,
        config=CONFIG,
        layout=layout,
        step=0,
        normalizer=NORMALIZER,
        weights=state.average_weights(),
        dataset={},
        training_state=state.state_dict(),
    )
    return tmp_path


def make_horizon_model(horizons=(4, 8, 12)):
    torch.manual_seed(1)
    model = HorizonModel(4, (0, 1), horizons, hidden_dim=16)
    model.center.copy_(torch.arange(6.0))
    model.scale.fill_(2.0)
    return model


def make_action_model(observation_dim=4):
    torch.manual_seed(2)
    model = ActionModel(observation_dim, 2, hidden_dim=24)
    model.change_scale.fill_(0.5)
    model.action_center.copy_(torch.tensor([3.0, -3.0]))
    return model


def test_a_checkpoint_has_none_at_first(checkpoint):
    planner = load_planner(checkpoint)
    assert planner.horizon_model is None
    assert planner.inverse_dynamics is None
    assert planner.support is None
    for settings in ({"horizon.rule": "predict"}, {"controller": "inverse_dynamics"}):
        with pytest.raises(PlanningError):
            load_planner(checkpoint, with_overrides(CONFIG.planning, settings))


def test_companions_come_back_with_their_planner(checkpoint):
    horizon_model, action_model = make_horizon_model(), make_action_model()
    plain = load_planner(checkpoint)
    save_horizon_model(checkpoint, horizon_model)
    save_action_model(str(checkpoint), action_model)
    save_support(checkpoint, Support(np.array([[1.0, 2.0], [3.0, 4.5]])))
    planner = load_planner(
        checkpoint, with_overrides(CONFIG.planning, {"horizon.rule": "predict", "controller": "inverse_dynamics"})
    )
    assert planner.horizon_model.horizons == (4, 8, 12)
    np.testing.assert_array_equal(planner.support.points, [[1.0, 2.0], [3.0, 4.5]])
    assert with_settings(planner, {"selection.num_candidates": 2}).support is planner.support
    observations, goals = torch.randn(5, 4), torch.randn(5, 2)
    assert torch.equal(planner.horizon_model(observations, goals), horizon_model(observations, goals))
    first, second = np.random.default_rng(0).normal(size=(2, 5, 4))
    np.testing.assert_array_equal(planner.inverse_dynamics(first, second), action_model.predict(first, second))
    np.testing.assert_array_equal(
        stack(planner.plan_horizon(OBSERVATIONS, GOALS, 8, seeded())),
        stack(plain.plan_horizon(OBSERVATIONS, GOALS, 8, seeded())),
    )


@pytest.mark.parametrize("name", ["horizon_model", "inverse_dynamics", "support"])
@pytest.mark.parametrize(
    ("tensors", "settings"),
    [
        ({"a": torch.zeros(2)}, {}),
        (make_horizon_model().state_dict(), {}),
        (make_horizon_model().state_dict(), {"horizons": 4}),
        (make_horizon_model().state_dict(), {"horizons": [4, 8]}),
        ({**make_horizon_model().state_dict(), "more": torch.zeros(1)}, {"horizons": [4, 8, 12]}),
        (make_action_model(observation_dim=3).state_dict(), {"horizons": [4]}),
        ({"points": torch.zeros(0, 2)}, {}),
        ({"points": torch.zeros(5, 3)}, {}),
    ],
)
def test_a_companion_of_another_kind_is_refused_in_one_line(checkpoint, name, tensors, settings):
    save_companion(checkpoint, name, tensors, settings)
    with pytest.raises(CheckpointError, match=r"belongs to another model.*`diffplan calibrate`") as caught:
        load_planner(checkpoint)
    assert str(checkpoint) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("save", [lambda path: save_horizon_model(path, make_horizon_model())])
def test_a_damaged_companion_is_refused_in_one_line(checkpoint, save):
    save(checkpoint)
    path = checkpoint / "horizon_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"horizon_model\.safetensors: expected \d+ bytes") as caught:
        load_planner(checkpoint)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["horizon_model", "inverse_dynamics"])
@pytest.mark.parametrize("damage", ["truncated", "missing", "another_kind"])
def test_a_planner_that_wants_no_companions_loads_whatever_they_are(checkpoint, name, damage):
    save_horizon_model(checkpoint, make_horizon_model())
    save_action_model(checkpoint, make_action_model())
    assert load_planner(checkpoint, companions=True).horizon_model is not None
    whole = load_planner(checkpoint, companions=False)
    assert (whole.horizon_model, whole.inverse_dynamics) == (None, None)
    path = checkpoint / f"{name}.safetensors"
    if damage == "another_kind":
        save_companion(checkpoint, name, {"a": torch.zeros(2)}, {})
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError):
        load_planner(checkpoint)
    planner = load_planner(checkpoint, companions=False)
    assert (planner.horizon_model, planner.inverse_dynamics) == (None, None)
    asked = (OBSERVATIONS, GOALS, 8)
    np.testing.assert_array_equal(
        stack(planner.plan_horizon(*asked, seeded())), stack(whole.plan_horizon(*asked, seeded()))
    )
    for settings in ({"horizon.rule": "predict"}, {"controller": "inverse_dynamics"}):
        with pytest.raises(PlanningError):
            load_planner(checkpoint, with_overrides(CONFIG.planning, settings), companions=False)
