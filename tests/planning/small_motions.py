"""Datasets of points that actions accelerate, for the tests of this directory."""

import numpy as np
from double_integrator import accelerate

from diffplan.config import config_to_dict
from diffplan.data.format.dataset import open_dataset
from diffplan.data.format.manifest import Manifest, make_columns, new_dataset_uuid
from diffplan.data.format.writer import create_dataset, write_unit
from diffplan.types import Episode


def write_motions(root, env, *, constant, num_episodes=8, num_steps=120):
    """A dataset of motions from random states, under accelerations that are constant in each episode or change."""
    manifest = create_dataset(
        root,
        Manifest(
            dataset_uuid=new_dataset_uuid(),
            env=config_to_dict(env),
            collection={"seed": 0},
            columns=make_columns(4, 2),
            action_low=[-5.0, -5.0],
            action_high=[5.0, 5.0],
        ),
    )
    write_unit(root, manifest, 0, [_make_motion(i, num_steps, constant) for i in range(num_episodes)])
    return open_dataset(root)


def _make_motion(index, num_steps, constant):
    generator = np.random.default_rng(index)
    observations = [np.concatenate([generator.uniform(0.5, 3.5, 2), generator.uniform(-2, 2, 2)])]
    actions = (
        np.tile(generator.uniform(-5, 5, 2), (num_steps, 1)) if constant else generator.uniform(-5, 5, (num_steps, 2))
    )
    for action in actions:
        observations.append(accelerate(observations[-1][None], action[None])[0])
    return Episode(
        episode_index=index,
        seed=index,
        behavior="motion",
        observations=np.array(observations, dtype=np.float32),
        actions=actions.astype(np.float32),
        rewards=np.zeros(num_steps, dtype=np.float32),
        terminated=False,
        truncated=True,
    )
