"""A point that runs along a line at a speed of its own, far from 0; what tests train on it."""

import numpy as np

from diffplan.checkpoint import Checkpoint, save_planning_checkpoint
from diffplan.config import (
    Config,
    DiffusionConfig,
    EnvConfig,
    HeadControl,
    HorizonConfig,
    NetworkConfig,
    PlanningConfig,
    Receding,
    SamplingConfig,
    SelectionConfig,
    TrainingConfig,
    WindowConfig,
)
from diffplan.data.format.dataset import open_dataset
from diffplan.data.format.manifest import Manifest, make_columns, new_dataset_uuid
from diffplan.data.format.writer import create_dataset, write_unit
from diffplan.training.batches import TrainingBatches
from diffplan.training.loop import train
from diffplan.training.state import TrainingState
from diffplan.types import Episode

OFFSETS, STEP_SECONDS, STEP = (2, 4, 8), 0.5, 0.2
CONFIG = Config(
    env=EnvConfig(env_id="running", step_seconds=STEP_SECONDS),
    windows=WindowConfig(
        min_horizon=4,
        max_horizon=4,
        offsets=OFFSETS,
        deltas=True,
        relative_columns=(1,),
        normalization="gaussian",
        padding="terminal",
        goal_columns=(),
    ),
    network=NetworkConfig(kind="mlp", dim=32, depth=1),
    diffusion=DiffusionConfig(num_diffusion_steps=16, prediction="velocity", clip_denoised=False),
    training=TrainingConfig(
        num_steps=500, batch_size=64, learning_rate=3e-3, discount=0.9, ema_decay=0.98, validation_fraction=0.0
    ),
    planning=PlanningConfig(
        sampling=SamplingConfig(num_steps=4),
        horizon=HorizonConfig(min=4, max=4, multiple=1),
        selection=SelectionConfig(num_candidates=4, rule="mean"),
        controller=HeadControl(reads="far"),
        replanning=Receding(interval=1),
    ),
)


def make_episode(index: int, draw_action=lambda generator: generator.uniform(-1, 1)) -> Episode:
    """Observations are (phase, position): each step moves the point by its action times `STEP`."""
    generator = np.random.default_rng(index)
    start, action, length = generator.uniform(-300, 300), draw_action(generator), 30
    positions = start + STEP * action * np.arange(length + 1)
    return Episode(
        episode_index=index,
        seed=index,
        behavior="run",
        observations=np.stack([np.sin(np.arange(length + 1)), positions], axis=1).astype(np.float32),
        actions=np.full((length, 1), action, dtype=np.float32),
        rewards=np.full(length, action, dtype=np.float32),
        terminated=False,
        truncated=True,
    )


def write_line(root, episodes, env_id="running"):
    """A dataset of episodes of a point on a line: two observations, one action."""
    manifest = Manifest(
        dataset_uuid=new_dataset_uuid(),
        env={"env_id": env_id},
        collection={"seed": 0},
        columns=make_columns(2, 1),
        action_low=[-1.0],
        action_high=[1.0],
    )
    write_unit(root, create_dataset(root, manifest), 0, episodes)
    return open_dataset(root)


def train_checkpoint(config, dataset, out):
    """Train on a dataset, and write the checkpoint."""
    batches = TrainingBatches(config, dataset)
    state = TrainingState(config, batches.layout)
    train(state, batches)
    weights = state.make_average_network().state_dict()
    source = {"path": dataset.uri}
    checkpoint = Checkpoint(
        out, config, batches.layout, config.training.num_steps, batches.normalizer, weights, source, None
    )
    save_planning_checkpoint(out, checkpoint)
    return out
