"""One trial of a search: settings evaluated block by block, or a model trained and evaluated block by block.

Both are Tune functions: they report after each block, where ASHA may stop them. Episodes are tuning episodes, which are
never among those of an evaluation.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from ray import tune

from diffplan.cluster.metrics import count_work
from diffplan.cluster.store_variables import adopt_variables
from diffplan.config import Config, EnvConfig, SearchConfig
from diffplan.config.study import Study
from diffplan.data.format.dataset import open_dataset
from diffplan.diffusion.denoiser import Denoiser
from diffplan.evaluation.rollout import evaluate_episodes
from diffplan.evaluation.scores import EpisodeResult
from diffplan.planning.loading import load_planner
from diffplan.planning.planner import Planner
from diffplan.seeding import Stream
from diffplan.tasks.registry import task_of
from diffplan.training.batches import TrainingBatches
from diffplan.training.loop import train
from diffplan.training.state import TrainingState
from diffplan.tuning.metrics import summarize_trial
from diffplan.tuning.space import apply_params

IS_FULL = "is_full"
"""Key in the reports of a trial: whether it has run to its end."""


def run_planner_trial(
    params: dict[str, Any],
    *,
    study: Study,
    config: Config,
    search: SearchConfig,
    envs: list[EnvConfig],
    source: str,
    others: list[str],
    variables: dict[str, str],
) -> None:
    """Evaluate settings of finished models; each block adds episodes to those before.

    Args:
        params: the settings, by dotted names of the config.
        study: what they are of.
        config: the experiment of the checkpoint.
        search: number and size of the blocks.
        envs: the environment under each protocol.
        source: the checkpoint.
        others: further checkpoints, which run the same episodes.
        variables: what their store needs (`find_variables`).
    """
    torch.set_num_threads(1)
    adopt_variables(variables)
    settings = apply_params(study, config, params).planning
    planners = [load_planner(checkpoint, settings) for checkpoint in (source, *others)]
    results: list[EpisodeResult] = []
    for block in range(search.num_blocks):
        for planner in planners:
            results += _evaluate(planner, envs, search, block)
        tune.report({**_summarize(results, study, envs[0], search), IS_FULL: block + 1 == search.num_blocks})


def run_training_trial(
    params: dict[str, Any],
    *,
    study: Study,
    config: Config,
    search: SearchConfig,
    envs: list[EnvConfig],
    source: str,
    snapshot: int,
    num_training_steps: int,
    variables: dict[str, str],
) -> None:
    """Train a model and evaluate it after each block of steps, with the episodes of as many blocks.

    Args:
        params: fields of the experiment, by dotted names.
        study: what they are of.
        config: the experiment.
        search: number of blocks, and how many episodes each adds.
        envs: the environment under each protocol.
        source: the dataset.
        snapshot: of the dataset.
        num_training_steps: of the last block.
        variables: what its store needs (`find_variables`).
    """
    torch.set_num_threads(1)
    adopt_variables(variables)
    config = _shorten(apply_params(study, config, params), num_training_steps)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batches = TrainingBatches(config, open_dataset(source, snapshot=snapshot), device=device)
    state = TrainingState(config, batches.layout, device)
    for block in range(search.num_blocks):
        last_step = math.ceil(config.training.num_steps * (block + 1) / search.num_blocks)
        train(state, batches, device=device, num_steps=last_step)
        network = state.make_average_network().cpu()
        planner = Planner(
            config,
            batches.layout,
            Denoiser.make(network, config.diffusion),
            batches.normalizer,
            return_range=batches.return_range,
        )
        # The model has changed since the last block, so all episodes are run again.
        results = [result for earlier in range(block + 1) for result in _evaluate(planner, envs, search, earlier)]
        report = {**_summarize(results, study, envs[0], search), "training_steps": state.step}
        tune.report({**report, IS_FULL: block + 1 == search.num_blocks})


def _shorten(config: Config, num_steps: int) -> Config:
    """The experiment of a trial: `num_steps` steps, and no compilation, which would take longer than these."""
    is_auto = config.training.compile == "auto"
    training = dataclasses.replace(
        config.training, num_steps=num_steps, compile="off" if is_auto else config.training.compile
    )
    return dataclasses.replace(config, training=training)


def _summarize(results: list[EpisodeResult], study: Study, env: EnvConfig, search: SearchConfig) -> dict[str, Any]:
    task = task_of(env)
    return summarize_trial(results, study, search.objective or task.objective, task)


def _evaluate(planner: Planner, envs: list[EnvConfig], search: SearchConfig, block: int) -> list[EpisodeResult]:
    first = block * search.episodes_per_block
    episodes = range(first, first + search.episodes_per_block)
    results: list[EpisodeResult] = []
    for env in envs:
        results += evaluate_episodes(planner, env, episodes, seed=search.seed, stream=Stream.TUNING)[0]
    count_work("tune", "episodes", len(results))
    return results
