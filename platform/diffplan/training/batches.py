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
from diffplan.data.readers import make_window_reader
from diffplan.data.window_index import WindowIndex
from diffplan.layout import Layout
from diffplan.seeding import Stream, make_generator, make_seed


@dataclass(frozen=True)
class TrainingBatch:
    """One forward pass, in model space.

    Attributes:
        x_clean: float32[rows, horizon, transition_dim].
        noise: standard normal, the same shape.
        diffusion_step: int64[rows].
        mask: which steps are no padding, bool[rows, horizon]; None where all are.
    """

    x_clean: Tensor
    noise: Tensor
    diffusion_step: Tensor
    mask: Tensor | None = None


class TrainingBatches:
    """Makes the batches of a run.

    Args:
        config: the experiment.
        dataset: the data.
        rank: number of this worker.
        world_size: number of workers; the batch size must be a multiple of it.
        device: where the data are kept if they fit, and where windows come from.
        verify: compare all data with their checksums before they are used.

    Raises:
        DataError: a horizon has no window, or a shard is damaged.
    """

    def __init__(
        self,
        config: Config,
        dataset: TrajectoryDataset,
        *,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        verify: bool = False,
    ) -> None:
        if config.training.batch_size % world_size:
            raise ValueError(
                f"training.batch_size: expected a multiple of the {world_size} workers, "
                f"got {config.training.batch_size}"
            )
        manifest = dataset.manifest
        self.layout = Layout.make(config.windows.columns, manifest.observation_dim, manifest.action_dim)
        names = ("action", "observation") if self.layout.action_dim else ("observation",)
        windows = config.windows
        self.normalizer = Normalizer.fit([dataset.statistics[n] for n in names], windows.normalization)
        index = WindowIndex(dataset, windows.stride, windows.padding, windows.task_weights)
        self._config = config
        self._rows = slice(rank, None, world_size)
        for horizon in windows.horizons:
            index.count(horizon)  # raises now, not in the middle of a run, if episodes are too short
        self.reader = make_window_reader(
            dataset,
            names,
            index,
            self.normalizer,
            storage=windows.storage,
            device=device,
            verify=verify,
            max_horizon=windows.max_horizon,
            seed=config.training.seed,
            rank=rank,
            world_size=world_size,
        )

    def make_step(self, step: int) -> list[TrainingBatch]:
        """This worker's batches of an optimizer step, one for each forward pass."""
        return [self.make(step, pass_index) for pass_index in range(self._config.training.accumulation_steps)]

    def make(self, step: int, pass_index: int = 0) -> TrainingBatch:
        """This worker's rows of one forward pass of an optimizer step."""
        training = self._config.training
        generator = make_generator(training.seed, Stream.TRAINING, step, pass_index)
        horizon = int(generator.choice(self._config.windows.horizons))
        torch_generator = torch.Generator().manual_seed(make_seed(training.seed, Stream.TRAINING, step, pass_index, 1))
        shape = (training.batch_size, horizon, self.layout.transition_dim)
        noise = torch.randn(shape, generator=torch_generator)
        diffusion_step = torch.randint(
            self._config.diffusion.num_diffusion_steps, (training.batch_size,), generator=torch_generator
        )
        batch = self.reader.read(step, training.batch_size, horizon, generator, self._rows)
        return TrainingBatch(batch.x, noise[self._rows], diffusion_step[self._rows], batch.mask)
