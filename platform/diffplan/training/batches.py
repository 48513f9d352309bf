"""The batches of a training run: a pure function of (config, dataset, step), whoever asks and from wherever.

Every random number of a step follows from the seed and the step's number, so resuming needs only that number, and a
worker of many takes its rows of the same global batch that one worker would see.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffplan.config import Config
from diffplan.data.dataset import TrajectoryDataset
from diffplan.data.normalization import Normalizer
from diffplan.data.windows import Windows
from diffplan.layout import Layout
from diffplan.seeding import Stream, make_generator, make_seed


@dataclass(frozen=True)
class TrainingBatch:
    """One forward pass, in model space.

    Attributes:
        x_clean: float32[rows, horizon, transition_dim].
        noise: standard normal, the same shape.
        diffusion_step: int64[rows].
    """

    x_clean: Tensor
    noise: Tensor
    diffusion_step: Tensor


class TrainingBatches:
    """Makes the batches of a run.

    Args:
        config: the experiment.
        dataset: the data.
        rank: number of this worker.
        world_size: number of workers; the batch size must be a multiple of it.
    """

    def __init__(self, config: Config, dataset: TrajectoryDataset, *, rank: int = 0, world_size: int = 1) -> None:
        if config.training.batch_size % world_size:
            raise ValueError(
                f"training.batch_size: expected a multiple of the {world_size} workers, "
                f"got {config.training.batch_size}"
            )
        manifest = dataset.manifest
        self.layout = Layout.make(config.windows.columns, manifest.observation_dim, manifest.action_dim)
        names = ["action", "observation"] if self.layout.action_dim else ["observation"]
        self.normalizer = Normalizer.fit([dataset.statistics[n] for n in names], config.windows.normalization)
        self.windows = Windows(dataset, names, config.windows.stride)
        self._config = config
        self._rows = slice(rank, None, world_size)
        for horizon in config.windows.horizons:
            self.windows.count(horizon)  # raises now, not in the middle of a run, if episodes are too short

    def make(self, step: int, pass_index: int = 0) -> TrainingBatch:
        """This worker's rows of one forward pass of an optimizer step."""
        training = self._config.training
        generator = make_generator(training.seed, Stream.TRAINING, step, pass_index)
        horizon = int(generator.choice(self._config.windows.horizons))
        windows = generator.integers(self.windows.count(horizon), size=training.batch_size)
        torch_generator = torch.Generator().manual_seed(make_seed(training.seed, Stream.TRAINING, step, pass_index, 1))
        shape = (training.batch_size, horizon, self.layout.transition_dim)
        noise = torch.randn(shape, generator=torch_generator)
        diffusion_step = torch.randint(
            self._config.diffusion.num_diffusion_steps, (training.batch_size,), generator=torch_generator
        )
        x = torch.from_numpy(self.windows.gather(windows[self._rows], horizon))
        return TrainingBatch(self.normalizer.normalize(x), noise[self._rows], diffusion_step[self._rows])
