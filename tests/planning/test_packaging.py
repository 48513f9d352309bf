"""Checkpoints to give away."""

import json
import shutil

import numpy as np
import pytest
import torch
from straight_line_planner import CONFIG, NORMALIZER, make_untrained_planner, seeded

import diffplan.tasks.pretrained
from diffplan.checkpoint import load_checkpoint, load_training_state, save_checkpoint
from diffplan.config import config_to_dict, with_overrides
from diffplan.errors import CheckpointError
from diffplan.planning.companions.horizon_model import HorizonModel
from diffplan.planning.companions.support import Support
from diffplan.planning.loading import load_planner, save_horizon_model, save_support
from diffplan.planning.packaging import package_planner
from diffplan.tasks.task import Task
from diffplan.training.state import TrainingState

OBSERVATIONS, GOALS = np.array([[1.1, 1.03, 0.3, -0.2]]), np.array([[3.0, 1.1]])


@pytest.fixture
def checkpoint(tmp_path):
    layout = make_untrained_planner().model.layout
    state = TrainingState(CONFIG, layout)
    save_checkpoint(
        tmp_path / "source",
        config=CONFIG,
        layout=layout,
        step=7,
        normalizer=NORMALIZER,
        weights=state.average_weights(),
        dataset={"path": "/somewhere/data", "uuid": "12ab", "snapshot": 3},
        training_state=state.state_dict(),
    )
    save_horizon_model(tmp_path / "source", HorizonModel(4, (0, 1), (4, 8, 12), hidden_dim=16))
    save_support(tmp_path / "source", Support(np.array([[1.0, 2.0]])))
    return tmp_path / "source"


def test_a_package_plans_as_its_source_but_for_half_precision(checkpoint, tmp_path):
    settings = with_overrides(CONFIG.planning, {"selection.num_candidates": 2, "horizon.rule": "scan"})
    size = package_planner(checkpoint, tmp_path / "package", settings)
    files = list((tmp_path / "package").iterdir())
    assert size == sum(file.stat().st_size for file in files if file.name != "config.json")
    assert size < 0.6 * sum(f.stat().st_size for f in checkpoint.iterdir() if f.name != "training_state.pt")
    packaged, source = load_planner(tmp_path / "package"), load_planner(checkpoint, settings)
    assert packaged.settings == settings
    assert packaged.horizon_model is not None
    np.testing.assert_array_equal(packaged.support.points, [[1.0, 2.0]])
    assert {value.dtype for value in packaged.model.denoiser.state_dict().values()} <= {torch.float32}
    mine, theirs = (p.plan_horizon(OBSERVATIONS, GOALS, 12, seeded(0))[0] for p in (packaged, source))
    np.testing.assert_allclose(mine.observations, theirs.observations, atol=0.02)
    for name, value in load_checkpoint(checkpoint).weights.items():
        np.testing.assert_array_equal(load_checkpoint(tmp_path / "package").weights[name], value.half().float())


def test_a_package_tells_nothing_of_the_machine_and_cannot_be_trained_on(checkpoint, tmp_path):
    package_planner(checkpoint, tmp_path / "package")
    for file in (tmp_path / "package").iterdir():
        assert b"/somewhere" not in file.read_bytes()
    assert json.loads((tmp_path / "package" / "dataset.json").read_text()) == {"uuid": "12ab"}
    assert config_to_dict(load_checkpoint(tmp_path / "package").config) == config_to_dict(CONFIG)
    with pytest.raises(CheckpointError, match="it is for planning alone"):
        load_training_state(tmp_path / "package")


def test_a_name_stands_for_a_planner_that_comes_along(checkpoint, tmp_path, monkeypatch):
    task = Task(name="small", pretrained=tmp_path / "shipped")
    monkeypatch.setattr(diffplan.tasks.pretrained, "load_tasks", lambda: {"small": task})
    package_planner(checkpoint, tmp_path / "shipped" / "maze2d-small")
    assert diffplan.tasks.pretrained.list_pretrained() == ["maze2d-small"]
    assert load_planner("pretrained:maze2d-small").config == CONFIG
    with pytest.raises(CheckpointError, match=r"'maze2d-smal'.*Did you mean 'maze2d-small'"):
        load_planner("pretrained:maze2d-smal")
    shutil.rmtree(tmp_path / "shipped")
    assert diffplan.tasks.pretrained.list_pretrained() == []
