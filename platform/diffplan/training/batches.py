"""The batches of a training run: a pure function of (config, dataset, step), the same in every process.

Every random number of a step follows from the seed and the number of the step. So resuming needs only that number, and
each of many workers takes its rows of the global batch that a single worker would have.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from diffplan.config import Config, TrainingConfig
from diffplan.data.format.dataset import TrajectoryDataset
from diffplan.data.windows.conditions import WindowBatch
from diffplan.data.windows.normalization import Deltas, Normalizer
from diffplan.data.windows.readers import WindowReader, make_window_reader
from diffplan.data.windows.window_index import WindowIndex
from diffplan.errors import ConfigError, DataError
from diffplan.layout import Layout
from diffplan.seeding import Stream, make_generator, make_seed
from diffplan.training.batch import TrainingBatch
from diffplan.training.conditions import check_condition, fit_return_range, make_condition
from diffplan.training.objectives import make_objective
from diffplan.training.symmetries import apply_symmetries, count_draws, find_symmetries

NUM_MEASURED_WINDOWS = 40_000
"""Windows that the scales of changes are measured on."""


class TrainingBatches:
    """Makes the batches of a run.

    Args:
        config: the experiment.
        dataset: the data.
        rank: number of this worker.
        world_size: number of workers; the batch size must be a multiple of it.
        device: device of the data, if they fit, and of the windows.
        verify: compare all data with their checksums before they are used.

    Attributes:
        layout: columns of a transition.
        normalizer: between environment units and model space.
        reader: reads the windows.
        return_range: returns that are normalised to 0 and to 1, the same for every worker; None if the network is not
            conditioned on returns.

    Raises:
        DataError: a horizon has no window, a shard is damaged, or the data do not have the condition of the network.
        ConfigError: there are more tasks than the network has labels.
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
        objective = make_objective(config)
        self._windows = windows = objective.windows
        self.layout = Layout.make(
            windows.columns, manifest.observation_dim, manifest.action_dim, has_flag=windows.has_flag
        )
        names = ("action", "observation") if self.layout.action_dim else ("observation",)
        self.normalizer = row_normalizer = Normalizer.fit(
            [dataset.statistics[n] for n in names], windows.normalization, [manifest.column(n) for n in names]
        )
        index = index_windows(dataset, config, held_out=False)
        self._config = config
        self._rows = slice(rank, None, world_size)
        network = config.network
        check_condition(network, dataset)
        self.return_range = None
        if objective.conditions.returns_to_go:
            self.return_range = fit_return_range(dataset, objective.conditions, verify=verify)
        self.reader = make_window_reader(
            dataset,
            names,
            index,
            row_normalizer,
            storage=windows.storage,
            conditions=objective.conditions,
            device=device,
            verify=verify,
            max_horizon=windows.max_horizon,
            seed=config.training.seed,
            rank=rank,
            world_size=world_size,
        )
        self._row_normalizer = row_normalizer
        self._symmetries = find_symmetries(windows.symmetries, config.env)
        if self._symmetries and objective.conditions.goal != "none":
            raise ConfigError(
                "windows.symmetries: expected none for a policy that is told goals, which would stay as they are, got "
                f"{', '.join(windows.symmetries)}"
            )
        self._zero = row_normalizer.normalize(np.zeros(len(row_normalizer.center), np.float32))
        if windows.has_flag:
            self.normalizer = self.normalizer.with_flag()
        if windows.deltas:  # from the same windows for every worker
            x = self._read(self.reader, 0, NUM_MEASURED_WINDOWS, windows.max_horizon, self._make_sample_generator()).x
            self.normalizer = replace(self.normalizer, deltas=Deltas.fit(x, self.layout.observations))
        self._validation_reader = None
        if config.training.validation_fraction:
            self._validation_reader = make_window_reader(
                dataset,
                names,
                index_windows(dataset, config, held_out=True),
                row_normalizer,
                storage="mapped" if dataset.store.is_local else "blocks",  # read once, so no copy is worth its memory
                conditions=objective.conditions,
                device=device,
                verify=verify,
                max_horizon=windows.max_horizon,
                seed=config.training.seed,
            )

    def make_step(self, step: int) -> list[TrainingBatch]:
        """This worker's batches of an optimizer step, one for each forward pass."""
        return [self.make(step, pass_index) for pass_index in range(self._config.training.accumulation_steps)]

    def make(self, step: int, pass_index: int = 0) -> TrainingBatch:
        """This worker's rows of one forward pass of an optimizer step."""
        training = self._config.training
        generator = make_generator(training.seed, Stream.TRAINING, step, pass_index)
        horizon = int(generator.choice(self._windows.horizons))
        seed = make_seed(training.seed, Stream.TRAINING, step, pass_index, 1)
        return self._make(self.reader, step, training.batch_size, horizon, generator, seed)

    def make_validation(self) -> list[TrainingBatch]:
        """This worker's rows of the held-out windows, always the same with the same noise; a batch for each horizon."""
        training, horizons = self._config.training, self._windows.horizons
        if self._validation_reader is None:
            return []
        num_windows = -(-training.validation_windows // len(horizons))
        batches = []
        for number, horizon in enumerate(horizons):
            generator = make_generator(training.seed, Stream.VALIDATION, horizon)
            seed = make_seed(training.seed, Stream.VALIDATION, horizon, 1)
            batches.append(self._make(self._validation_reader, number, num_windows, horizon, generator, seed))
        return batches

    def _make(
        self, reader: WindowReader, step: int, num_windows: int, horizon: int, generator: np.random.Generator, seed: int
    ) -> TrainingBatch:
        """This worker's rows of a batch."""
        torch_generator = torch.Generator().manual_seed(seed)
        noise = torch.randn((num_windows, horizon, self.layout.transition_dim), generator=torch_generator)
        diffusion_step = torch.randint(
            self._config.diffusion.num_diffusion_steps, (num_windows,), generator=torch_generator
        )
        network, withheld = self._config.network, torch.zeros(num_windows, dtype=torch.bool)
        if network.condition != "none":  # the last to be drawn, so that noise is the same with and without conditions
            withheld = torch.rand(num_windows, generator=torch_generator) < network.condition_dropout
        known = None
        if self._windows.known_columns:
            known = (torch.rand(num_windows, generator=torch_generator) < self._windows.known_share)[self._rows]
        draws = torch.rand((num_windows, count_draws(self._symmetries)), generator=torch_generator)[self._rows]
        batch = self._read(reader, step, num_windows, horizon, generator, self._rows, draws)
        return TrainingBatch(
            batch.x if self.normalizer.deltas is None else self.normalizer.deltas.apply(batch.x),
            noise[self._rows],
            diffusion_step[self._rows],
            batch.mask,
            make_condition(network, batch, self.return_range, withheld[self._rows]),
            self._make_target(batch),
            batch.goal,
            self._make_weight(batch),
            known,
        )

    def _read(
        self,
        reader: WindowReader,
        step: int,
        num_windows: int,
        horizon: int,
        generator: np.random.Generator,
        rows: slice = slice(None),
        draws: Tensor | None = None,
    ) -> WindowBatch:
        """Windows changed by the symmetries, with their flags, if they have any; see `WindowReader.read`."""
        batch = reader.read(step, num_windows, horizon, generator, rows)
        if self._symmetries:
            if draws is None:
                draws = torch.from_numpy(generator.random((num_windows, count_draws(self._symmetries)))).float()[rows]
            x = apply_symmetries(self._symmetries, batch.x, draws.to(batch.x.device), self.layout, self._row_normalizer)
            batch = replace(batch, x=x)
        if relative := self.layout.observation_columns(self._windows.relative_columns):
            x, zero = batch.x.clone(), batch.x.new_tensor(self._zero[relative])
            x[:, :, relative] += zero - x[:, :1, relative]
            batch = replace(batch, x=x)
        if batch.goes_on is None:
            return batch
        flags = torch.where(batch.goes_on, 1.0, -1.0)[:, :, None]
        return replace(batch, x=torch.cat([batch.x, flags], dim=2))

    def sample(self, num_windows: int, horizon: int) -> Tensor:
        """Windows in model space, float32[windows, horizon, transition_dim]; the same for every worker."""
        x = self._read(self.reader, 0, num_windows, horizon, self._make_sample_generator()).x
        return x if self.normalizer.deltas is None else self.normalizer.deltas.apply(x)

    def _make_sample_generator(self) -> np.random.Generator:
        return make_generator(self._config.training.seed, Stream.TRAINING)

    def _make_weight(self, batch: WindowBatch) -> Tensor | None:
        strength = self._config.training.return_weight
        if not strength:
            return None
        assert batch.returns_to_go is not None
        assert self.return_range is not None
        low, high = self.return_range
        return torch.exp(strength * ((batch.returns_to_go - low) / (high - low) - 1)).clamp(max=1.0)

    def _make_target(self, batch: WindowBatch) -> Tensor | None:
        if self._config.training.objective != "value":
            return None
        assert batch.returns_to_go is not None
        assert self.return_range is not None
        low, high = self.return_range
        return (batch.returns_to_go - low) / (high - low)


def index_windows(dataset: TrajectoryDataset, config: Config, *, held_out: bool) -> WindowIndex:
    """The windows that a run is trained on, or those that are held out; whole episodes are held out.

    The seed and the number of an episode decide, so that the choice stays the same when a dataset grows.

    Raises:
        DataError: a horizon has no window, or there are too few episodes to hold one out.
    """
    windows, training = make_objective(config).windows, config.training
    among = None
    if training.validation_fraction:
        among = _draw_held_out(dataset, training) == held_out
    if windows.best_share < 1:  # chosen within each side of the split, so that neither is empty
        among = find_best(dataset, windows.best_share, among)
    index = WindowIndex(
        dataset,
        windows.stride,
        windows.padding,
        windows.task_weights,
        among=among,
        offsets=windows.offsets,
        every=windows.start_every,
    )
    for horizon in windows.horizons:
        index.count(horizon)  # raises now, not in the middle of a run, if episodes are too short
    return index


def find_best(dataset: TrajectoryDataset, share: float, among: np.ndarray | None = None) -> np.ndarray:
    """The episodes with the highest returns, as few as hold a share of all steps, bool[episodes].

    Args:
        dataset: the data.
        share: of the steps, in (0, 1].
        among: the episodes to choose from, bool[episodes]; all if None.
    """
    lengths = dataset.episodes.length.astype(np.int64)
    if among is not None:
        lengths = np.where(among, lengths, 0)
    order = np.argsort(-dataset.episodes.column("undiscounted_return"), kind="stable")
    order = order[lengths[order] > 0]
    before = np.cumsum(lengths[order]) - lengths[order]
    best = np.zeros(len(lengths), dtype=bool)
    best[order[before < share * lengths.sum()]] = True
    return best


def _draw_held_out(dataset: TrajectoryDataset, training: TrainingConfig) -> np.ndarray:
    """Which episodes are held out, bool[episodes]; at least one, and not all."""
    numbers = make_generator(training.seed, Stream.VALIDATION).random(len(dataset.episodes))
    if len(numbers) < 2:
        raise DataError(
            f"{dataset.uri}: training.validation_fraction: expected at least 2 episodes to hold one out, "
            f"got {len(numbers)}; set it to 0"
        )
    numbers = numbers[dataset.episodes.find_copies()]  # or a copy would be trained on while the other is held out
    if numbers.min() == numbers.max():
        raise DataError(
            f"{dataset.uri}: training.validation_fraction: expected two different episodes to hold one out, got copies "
            "of one; set it to 0"
        )
    held_out = numbers < training.validation_fraction
    held_out[numbers == numbers.min()], held_out[numbers == numbers.max()] = True, False
    return held_out
