from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from diffplan.cluster.collect.coordinator import collect
from diffplan.config import Config, with_overrides
from diffplan.planning import calibration
from diffplan.planning.companions.horizon_model import fit_horizon_model
from diffplan.tasks.registry import get_preset
from diffplan.training import inverse_dynamics
from diffplan.training.inverse_dynamics import fit_action_model


@pytest.fixture(scope="session")
def tiny_config() -> Config:
    """Every stage in seconds; the plans are bad, which these tests do not mind."""
    return with_overrides(
        get_preset("maze2d-umaze-smoke"),
        {
            "collection.num_steps": 6_000,
            "collection.episode_steps": 300,
            "collection.episodes_per_unit": 5,
            "network.dim": 8,
            "network.dim_mults": [1, 2],
            "training.num_steps": 12,
            "training.batch_size": 8,
            "training.log_interval": 2,
            "training.checkpoint_interval": 4,
            "training.picture_interval": 12,
            "training.num_warmup_steps": 2,
            "training.ema_start_step": 2,
            "calibration.num_plans": 200,
            "planning.horizon.max": 16,
            "planning.sampling.num_steps": 2,
            "planning.selection.num_candidates": 1,
            "planning.replanning.max_deviation": 0.0,
            "search.num_trials": 3,
            "search.episodes_per_block": 2,
            "search.num_blocks": 2,
        },
    )


@pytest.fixture(scope="module")
def short_fits() -> Iterator[None]:
    """Companions fitted in a few steps, for what they come to is tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "fit_horizon_model", partial(fit_horizon_model, num_steps=20))
        patch.setattr(inverse_dynamics, "fit_action_model", partial(fit_action_model, num_steps=20, num_test_pairs=200))
        yield


@pytest.fixture(scope="session")
def tiny_dataset(ray_cluster: None, tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny") / "dataset"
    collect(tiny_config.env, tiny_config.collection, root)
    return root


@pytest.fixture(scope="session")
def tiny_checkpoint(
    ray_cluster: None, tiny_config: Config, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    from diffplan.cluster.train.driver import train_on_cluster

    return train_on_cluster(
        tiny_config, tiny_dataset, tmp_path_factory.mktemp("tiny") / "checkpoint", cpus_per_worker=1
    )
