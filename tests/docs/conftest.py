"""A small real model of Maze2D-UMaze, collected and trained in this process, for the examples of the documents."""

from pathlib import Path

import pytest
from small_runs import collect, fit

from diffplan.config import with_overrides
from diffplan.tasks.registry import get_preset

CONFIG = with_overrides(
    get_preset("maze2d-umaze-smoke"),
    {
        "network.dim": 16,
        "network.dim_mults": [1, 2],
        "training.num_steps": 800,
        "training.learning_rate": 5e-3,
        "training.ema_decay": 0.98,
    },
)
"""The preset with a small network and a high learning rate: plans good enough to show, after 20 seconds on one core."""


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the dataset `data/umaze` and two checkpoints under `models/`, as the documents name them."""
    root = tmp_path_factory.mktemp("workspace")
    (root / "data").mkdir()
    collect(CONFIG.env, CONFIG.collection, root / "data" / "umaze")
    fit(CONFIG, root / "data" / "umaze", root / "models" / "umaze")
    value = with_overrides(CONFIG, {"training.objective": "value", "training.num_steps": 20})
    fit(value, root / "data" / "umaze", root / "models" / "umaze-value")
    return root
