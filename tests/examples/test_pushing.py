"""The example package in one process: it trains, plans, acts, is measured and drawn.

Whole runs, each in processes of its own: `tests/cluster/test_outside_package.py`.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from diffplan.behaviors.collection import UnitCollector, complete_collection, make_manifest
from diffplan.config import Config, with_overrides
from diffplan.data.format.dataset import open_dataset
from diffplan.data.format.writer import create_dataset, write_unit
from diffplan.diffusion.denoiser import Denoiser
from diffplan.evaluation.protocol import apply_protocol, choose_protocols
from diffplan.evaluation.rollout import evaluate_episodes
from diffplan.planning.planner import Planner
from diffplan.tasks.registry import find_experiment, make_figures, task_of
from diffplan.training.batches import TrainingBatches
from diffplan.training.loop import train
from diffplan.training.state import TrainingState
from pushing.environment import BLOCK
from pushing.task import SMOKE, TASK

CONFIG = with_overrides(
    find_experiment("pushing.task:TASK/pushing-smoke").config,
    {"collection.num_steps": 960, "collection.episodes_per_unit": 4, "training.num_steps": 4},
)


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory) -> Planner:
    root = tmp_path_factory.mktemp("pushing") / "dataset"
    manifest = create_dataset(root, make_manifest(CONFIG.env, CONFIG.collection))
    env, collection = complete_collection(CONFIG.env, CONFIG.collection)
    collector = UnitCollector(env, collection)
    for unit in range(collection.num_units):
        write_unit(root, manifest, unit, collector.collect(unit))
    batches = TrainingBatches(CONFIG, open_dataset(root))
    state = TrainingState(CONFIG, batches.layout)
    train(state, batches)
    denoiser = Denoiser.make(state.make_average_network(), CONFIG.diffusion)
    return Planner(CONFIG, batches.layout, denoiser, batches.normalizer)


def test_presets_protocols_and_the_task_itself_are_found_by_import_path() -> None:
    assert CONFIG.env == replace(SMOKE.env, task="pushing.task:TASK")
    assert task_of(CONFIG.env) is TASK
    assert find_experiment("pushing.task:TASK").name == "pushing-small"
    assert choose_protocols((), CONFIG.env) == ("near", "far")
    assert isinstance(CONFIG, Config)


@pytest.mark.parametrize("protocol", TASK.protocols)
def test_plans_bring_the_block_to_the_goal_and_the_task_measures_what_comes_of_them(
    planner: Planner, protocol: str
) -> None:
    results, recorded = evaluate_episodes(
        planner, apply_protocol(protocol, CONFIG.env), range(3), seed=0, num_recorded=3
    )
    for result, episode in zip(results, recorded, strict=True):
        assert episode.plan is not None
        assert result.goal is not None
        np.testing.assert_array_equal(episode.plan.observations[-1, BLOCK], np.float32(result.goal))
        distance = np.linalg.norm(episode.observations[-1, BLOCK] - result.goal)
        assert result.metrics["final_distance"] == pytest.approx(distance, abs=1e-5)
        assert result.success is (result.undiscounted_return > 0)
        assert result.num_plans >= 1


def test_pictures_are_those_of_the_task(planner: Planner) -> None:
    figures = make_figures(CONFIG.env)
    windows = np.random.default_rng(0).uniform(-1, 1, (8, 6, 12)).astype(np.float32)
    observations, goals = figures.choose_problems(windows, 2, np.random.default_rng(0))
    plans = planner.plan(observations, goals, torch.Generator().manual_seed(0), keep_denoising=True)
    assert "yellow disc" in figures.words.plans
    assert plans[0].denoising is not None
    drawn = [
        figures.draw_plans(plans, goals),
        figures.draw_plan(plans[0].denoising[0], None if goals is None else goals[0]),
        figures.draw_rollout(plans[0].observations, plans[0].stride, windows[0], None, None),
        figures.draw_data(windows.reshape(-1, 12)),
    ]
    for number, figure in enumerate(drawn):
        figure.canvas.draw()
        assert len(figure.axes) == (2 if number == 0 else 1)
