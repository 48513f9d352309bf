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
from diffplan.training.conditions import check_condition, fit_return_range, make_condition, make_reader_conditions


@dataclass(frozen=True)
class TrainingBatch:
    """One forward pass, in model space.

    Attributes:
        x_clean: float32[rows, horizon, transition_dim].
        noise: standard normal, the same shape.
        diffusion_step: int64[rows].
        mask: which steps are no padding, bool[rows, horizon]; None where all are.
        condition: what the network is told of each row, float32[rows], NaN where that is withheld: its task, or the
            return from its first step to the end of its episode as a place in `TrainingBatches.return_range`. None
            where it is told nothing.
    """

    x_clean: Tensor
    noise: Tensor
    diffusion_step: Tensor
    mask: Tensor | None = None
    condition: Tensor | None = None


class TrainingBatches:
    """Makes the batches of a run.

    Args:
        config: the experiment.
        dataset: the data.
        rank: number of this worker.
        world_size: number of workers; the batch size must be a multiple of it.
        device: where the data are kept if they fit, and where windows come from.
        verify: compare all data with their checksums before they are used.

    Attributes:
        layout: columns of a transition.
        normalizer: between environment units and model space.
        reader: where windows come from.
        return_range: returns that the network is told as 0 and as 1, the same for every worker; None where it is not
            told returns.

    Raises:
        DataError: a horizon has no window, a shard is damaged, or the network is to be told what the data do not hold.
        ConfigError: there are more tasks than the network knows.
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
        network = config.network
        check_condition(network, dataset)
        self.return_range = fit_return_range(dataset, verify=verify) if network.condition == "returns" else None
        self.reader = make_window_reader(
            dataset,
            names,
            index,
            self.normalizer,
            storage=windows.storage,
            conditions=make_reader_conditions(network),
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
        network, withheld = self._config.network, torch.zeros(training.batch_size, dtype=torch.bool)
        if network.condition != "none":  # the last to be drawn, so that noise is the same with and without conditions
            withheld = torch.rand(training.batch_size, generator=torch_generator) < network.condition_dropout
        batch = self.reader.read(step, training.batch_size, horizon, generator, self._rows)
        condition = make_condition(network, batch, self.return_range, withheld[self._rows])
        return TrainingBatch(batch.x, noise[self._rows], diffusion_step[self._rows], batch.mask, condition)
