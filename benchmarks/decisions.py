"""How many decisions a second a planner of few jumps makes on one core, replanning at every environment step.

A decision is one environment's part of a call of `Planner.plan`: denoising, the value of the candidates, their average
and the action of the head. Networks have the sizes of the presets and almost no training, which costs the same. One
thread; all cases take turns, and each number is the median over turns.

    python benchmarks/decisions.py
"""

import os
import statistics
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch are imported

import numpy as np
import torch
from harness import make_parser, make_scratch, parse_arguments, write_results

from diffplan.behaviors.collection import UnitCollector, make_manifest
from diffplan.config import CollectionConfig, with_overrides
from diffplan.data.format.dataset import TrajectoryDataset, open_dataset
from diffplan.data.format.writer import create_dataset, write_unit
from diffplan.diffusion.denoiser import Denoiser
from diffplan.planning.companions.value_fit import fit_value
from diffplan.planning.companions.value_model import LearnedValue
from diffplan.planning.planner import Planner, with_settings
from diffplan.tasks.registry import get_preset
from diffplan.training.action_heads import fit_action_heads
from diffplan.training.batches import TrainingBatches
from diffplan.training.state import TrainingState

PRESETS = ("hopper-medium", "walker2d-medium", "halfcheetah-medium")
WAYS = {
    "value": {"guidance.value": "plan", "selection.rule": "soft"},
    "no value": {"guidance.value": None, "selection.rule": "mean"},
}
BARS = {"must": 300, "goal": 600, "moonshot": 800}
"""Decisions a second at batch 1."""


def collect(preset: str, root: Path) -> TrajectoryDataset:
    """A few episodes."""
    env, collection = get_preset(preset).env, CollectionConfig(episodes_per_unit=12)
    manifest = create_dataset(root, make_manifest(env, collection))
    write_unit(root, manifest, 0, UnitCollector(env, collection).collect(0))
    return open_dataset(root)


def make_planner(preset: str, dataset: TrajectoryDataset) -> Planner:
    """The planner of a preset, after no training."""
    config = get_preset(preset)
    batches = TrainingBatches(config, dataset)
    value, _ = fit_value(dataset, config, whole_plans=True, num_steps=2)
    heads, _ = fit_action_heads(dataset, config, num_steps=2)
    return Planner(
        config,
        batches.layout,
        Denoiser.make(TrainingState(config, batches.layout).make_average_network(), config.diffusion),
        batches.normalizer,
        with_overrides(config.planning, WAYS["value"]),
        value=LearnedValue(value, "plan"),
        action_heads=heads,
    )


def time_plans(planner: Planner, observations: np.ndarray, seconds: float) -> float:
    """Decisions a second, of as many calls as fit in some seconds."""
    generator = torch.Generator().manual_seed(0)
    num_calls, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds or num_calls < 2:
        planner.plan(observations, None, generator)
        num_calls += 1
    return num_calls * len(observations) / passed


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--turns", type=int, default=9, help="times that each case is measured")
    parser.add_argument("--seconds", type=float, default=1.0, help="seconds of one measurement")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32], help="environments that are planned for")
    arguments = parse_arguments(parser, quick={"turns": 1, "seconds": 0.01})
    torch.set_num_threads(1)
    cases = {}
    with make_scratch() as scratch:
        for preset in PRESETS:
            dataset = collect(preset, Path(scratch) / preset)
            planner = make_planner(preset, dataset)
            observations = dataset.read_column("observation")
            for way, settings in WAYS.items():
                changed = with_settings(planner, with_overrides(planner.settings, settings))
                for batch in arguments.batches:
                    cases[preset, way, batch] = changed, observations[:batch]
        rates: dict[tuple[str, str, int], list[float]] = {case: [] for case in cases}
        for _ in range(arguments.turns):
            for case, (planner, observations) in cases.items():
                rates[case].append(time_plans(planner, observations, arguments.seconds))
    settings = get_preset(PRESETS[0]).planning
    print(f"{settings.selection.num_candidates} candidates, {settings.sampling.num_steps} denoising steps, one thread")
    print(f"{'preset':20} {'way':10} {'batch':>5} {'decisions/s':>12} {'ms a decision':>14}")
    rows = []
    for (preset, way, batch), measured in rates.items():
        rate = statistics.median(measured)
        print(f"{preset:20} {way:10} {batch:5d} {rate:12.0f} {1000 / rate:14.2f}")
        rows.append({"preset": preset, "way": way, "batch": batch, "decisions_per_second": rate, "turns": measured})
    write_results(arguments, {"bars": BARS, "rows": rows})


if __name__ == "__main__":
    main()
