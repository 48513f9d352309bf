"""How fast training is, each number beside what it is measured against, in one run.

* Steps against a plain loop of the usual kind, written out below: the same network, batch and data, items one by one
  through a `DataLoader`, torch's own Mish, convolutions of steps that lie next to each other in memory, Adam over all
  tensors, an average of the weights in Python. Blocks of steps take turns.
* What a step costs beside its forward and backward passes.
* Two workers (gloo, one thread each) against one worker of one thread, the same global batch.
* Resident memory of a training on a dataset of 40 M steps.

    python benchmarks/training.py
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from harness import find_dataset, make_parser, parse_arguments, write_results
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from diffplan.config import Config, with_overrides
from diffplan.data.format.dataset import TrajectoryDataset, open_dataset
from diffplan.data.windows.normalization import Normalizer
from diffplan.data.windows.prefetch import Prefetcher
from diffplan.diffusion.schedule import make_schedule
from diffplan.networks import blocks, packing, temporal_unet
from diffplan.networks.factory import make_network
from diffplan.tasks.registry import get_preset
from diffplan.training.allocation import keep_freed_memory
from diffplan.training.batches import TrainingBatches
from diffplan.training.loop import take_step, train
from diffplan.training.passes import make_ahead, make_passes
from diffplan.training.state import TrainingState, compute_lr_factor

HORIZON = 32
CPU = torch.device("cpu")


class PaddedItems(Dataset):
    """The usual recipe, as in the code of Janner et al. 2022: episodes in a padded buffer, a list of all windows."""

    def __init__(self, dataset: TrajectoryDataset, normalizer: Normalizer, stride: int) -> None:
        lengths = dataset.episodes.length
        values = normalizer.normalize(dataset.read_column("observation"))
        self.buffer = np.zeros((len(lengths), int(lengths.max()), values.shape[1]), np.float32)
        for i, episode in enumerate(np.split(values, np.cumsum(lengths)[:-1])):
            self.buffer[i, : len(episode)] = episode
        self.stride, span = stride, (HORIZON - 1) * stride + 1
        self.indices = [(i, start) for i, n in enumerate(lengths.tolist()) for start in range(n - span + 1)]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        episode, start = self.indices[index]
        window = self.buffer[episode, start : start + HORIZON * self.stride : self.stride]
        return window, {0: window[0], HORIZON - 1: window[-1]}


class PlainLoop:
    """A training loop of the usual kind."""

    def __init__(
        self, config: Config, dataset: TrajectoryDataset, num_loader_workers: int, device: torch.device = CPU
    ) -> None:
        self.device = device
        training = config.training
        self.training = training
        normalizer = Normalizer.fit([dataset.statistics["observation"]], config.windows.normalization)
        items = PaddedItems(dataset, normalizer, config.windows.stride)
        self.loader = DataLoader(
            items, training.batch_size, shuffle=True, drop_last=True, num_workers=num_loader_workers
        )
        self.batches = iter(self.loader)
        torch.manual_seed(0)
        self.network = make_network(items.buffer.shape[2], config.network, HORIZON).to(device)
        self.average = make_network(items.buffer.shape[2], config.network, HORIZON).to(device)
        self.average.load_state_dict(self.network.state_dict())
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay
        )
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: compute_lr_factor(step, training)
        )
        schedule = make_schedule(config.diffusion.schedule, config.diffusion.num_diffusion_steps)
        self.alpha_bar = schedule.alpha_bar.float().to(device)

    def take_step(self) -> None:
        """One optimizer step."""
        try:
            x, conditions = next(self.batches)
        except StopIteration:
            self.batches = iter(self.loader)
            x, conditions = next(self.batches)
        x = x.to(self.device)
        conditions = {index: value.to(self.device) for index, value in conditions.items()}
        step = torch.randint(len(self.alpha_bar), (len(x),), device=self.device)
        noise = torch.randn_like(x)
        alpha_bar = self.alpha_bar[step][:, None, None]
        noisy = alpha_bar.sqrt() * x + (1 - alpha_bar).sqrt() * noise
        for index, value in conditions.items():
            noisy[:, index] = value
        predicted = self.network(noisy, step)
        for index, value in conditions.items():
            predicted[:, index] = value
        loss = F.mse_loss(predicted, x)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.training.max_gradient_norm or float("inf"))
        self.optimizer.step()
        self.scheduler.step()
        with torch.no_grad():
            for average, weight in zip(self.average.parameters(), self.network.parameters(), strict=True):
                average.data = average.data * self.training.ema_decay + (1 - self.training.ema_decay) * weight.data
        loss.item()  # usual loops log it


class OurLoop:
    """Steps of `diffplan.training`, as `train` takes them."""

    def __init__(self, config: Config, dataset: TrajectoryDataset) -> None:
        keep_freed_memory()
        self.batches = TrainingBatches(config, dataset)
        self.state = TrainingState(config, self.batches.layout)
        self.passes = make_passes(self.state, CPU)
        self.steps = iter(Prefetcher(make_ahead(self.batches.make_step, CPU), itertools.count()))
        self.prepared = self.batches.make(0)

    def take_step(self) -> None:
        """One optimizer step."""
        take_step(self.state, self.passes, next(self.steps))

    def pass_through(self) -> None:
        """A forward and a backward pass alone."""
        self.passes(self.prepared)


@contextlib.contextmanager
def layers_of_the_usual_kind() -> Iterator[None]:
    """Layers computed as in the code of Janner et al. 2022, by the same functions of torch on the same layout."""

    def as_images(x: Tensor) -> Tensor:
        return x.transpose(1, 2)[:, :, None].contiguous()

    def convolve(x: Tensor, weight: Tensor, bias: Tensor, convolution: Callable[..., Tensor], **kwargs: Any) -> Tensor:
        return convolution(x, weight[:, :, None], bias, **kwargs)  # what torch makes of one over a single dimension

    with (
        mock.patch.object(blocks, "mish", F.mish),
        mock.patch.object(temporal_unet, "mish", lambda embedding: embedding),
        mock.patch.object(blocks.ActivatedBefore, "forward", lambda _, embedding: F.mish(embedding)),
        mock.patch.object(temporal_unet, "as_images", as_images),
        mock.patch.object(packing, "convolve", convolve),
    ):
        yield


def time_block(step: Callable[[], None], num_steps: int) -> float:
    """Seconds of a step, the mean over a block."""
    start = time.perf_counter()
    for _ in range(num_steps):
        step()
    return (time.perf_counter() - start) / num_steps


LOOPS: dict[int, PlainLoop | OurLoop] = {}
"""The loops of a process of `compare`: ours in one, the plain ones, by their loader processes, in another."""
OURS = -1
REST_SECONDS = 0.3
"""Between turns, for what the last one left to be done: loaders fill their queues, threads stop to spin."""


def make_loop(config: Config, data: str, kind: int) -> None:
    """Make a loop in this process."""
    torch.set_num_threads(os.cpu_count() or 1)
    dataset = open_dataset(data)
    LOOPS[kind] = OurLoop(config, dataset) if kind == OURS else PlainLoop(config, dataset, kind)


def time_loop(kind: int, what: str, block: int) -> float:
    """Seconds of a step, or of what else the loop does, in this process."""
    with contextlib.nullcontext() if kind == OURS else layers_of_the_usual_kind():
        return time_block(getattr(LOOPS[kind], what), block)


def count_parameters() -> int:
    """Parameters of our network."""
    ours = LOOPS[OURS]
    assert isinstance(ours, OurLoop)
    return sum(parameter.numel() for parameter in ours.state.network.parameters())


def compare(config: Config, data: str, rounds: int, block: int) -> dict[str, Any]:
    """Our steps, the plain loop's with and without a loader process, and passes alone; blocks of each take turns.

    Ours run in a process of their own, for what we do about memory holds for a whole process.
    """
    spawn = multiprocessing.get_context("spawn")
    times: dict[str, list[float]] = {}
    with ProcessPoolExecutor(1, spawn) as our_process, ProcessPoolExecutor(1, spawn) as plain_process:
        loops = [("ours", our_process, OURS, "take_step"), ("passes", our_process, OURS, "pass_through")]
        plain = [(f"plain_{n}_loader_processes", plain_process, n, "take_step") for n in (0, 1)]
        for process, kind in ((our_process, OURS), (plain_process, 0), (plain_process, 1)):
            process.submit(make_loop, config, data, kind).result()
        for turn in range(rounds + 1):
            for name, process, kind, what in loops + plain:
                time.sleep(REST_SECONDS)
                seconds = process.submit(time_loop, kind, what, block).result()
                if turn:  # the first warms up
                    times.setdefault(name, []).append(seconds)
        parameters = our_process.submit(count_parameters).result()
    best_plain = [min(pair) for pair in zip(*(times[name] for name, *_ in plain), strict=True)]
    return {
        "batch_size": config.training.batch_size,
        "horizon": HORIZON,
        "parameters": parameters,
        **{f"{name}_milliseconds": 1e3 * statistics.median(values) for name, values in times.items()},
        "samples_per_second": config.training.batch_size / statistics.median(times["ours"]),
        "speedup_over_plain_loop": statistics.median(p / o for p, o in zip(best_plain, times["ours"], strict=True)),
        "step_overhead": statistics.median(o / p for o, p in zip(times["ours"], times["passes"], strict=True)) - 1,
    }


def run_worker(rank: int, world_size: int, config: Config, data: str, rendezvous: str, results: Any) -> None:
    """One data-parallel worker of one thread; rank 0 puts its steps per second."""
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})
    if world_size > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size
        )
    batches = TrainingBatches(config, open_dataset(data), rank=rank, world_size=world_size)
    state = TrainingState(config, batches.layout)
    rates: list[float] = []
    train(state, batches, on_progress=lambda progress: rates.append(progress.steps_per_second))
    if rank == 0:
        results.put(statistics.median(rates[1:]))
    if world_size > 1:
        torch.distributed.destroy_process_group()


def time_workers(config: Config, data: str, world_size: int) -> float:
    """Steps per second of so many workers."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    with tempfile.TemporaryDirectory() as directory:
        rendezvous = str(Path(directory) / "rendezvous")
        processes = [
            context.Process(target=run_worker, args=(rank, world_size, config, data, rendezvous, results))
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        rate = results.get(timeout=600)
        for process in processes:
            process.join()
    return rate


def compare_workers(config: Config, data: str, rounds: int) -> dict[str, Any]:
    """Two workers against one, taking turns."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for world_size in rates:
            rates[world_size].append(time_workers(config, data, world_size))
    return {
        "batch_size": config.training.batch_size,
        "one_worker_steps_per_second": statistics.median(rates[1]),
        "two_workers_steps_per_second": statistics.median(rates[2]),
        "two_workers_over_one": statistics.median(b / a for a, b in zip(rates[1], rates[2], strict=True)),
        "threads_of_a_worker": 1,
    }


MEMORY_SCRIPT = """
import sys, torch
torch.set_num_threads(2)
from diffplan.config import with_overrides
from diffplan.data.format.dataset import open_dataset
from diffplan.tasks.registry import get_preset
from diffplan.training.allocation import keep_freed_memory
from diffplan.training.batches import TrainingBatches
from diffplan.training.loop import train
from diffplan.training.state import TrainingState
overrides = {"training.num_steps": int(sys.argv[3]), "windows.columns": "actions_observations"}
config = with_overrides(get_preset(sys.argv[2]), overrides)
dataset = open_dataset(sys.argv[1])
batches = TrainingBatches(config, dataset)
train(TrainingState(config, batches.layout), batches)
print(dataset.num_steps, type(batches.reader).__name__)
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def measure_memory(data: str, preset: str, num_steps: int) -> dict[str, Any]:
    """The largest resident memory of a process that trains some steps on a dataset, mapped pages included."""
    out = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT, data, preset, str(num_steps)], capture_output=True, text=True, check=True
    ).stdout
    steps, reader = out.splitlines()[0].split()
    kilobytes = int(re.findall(r"VmHWM:\s+(\d+) kB", out)[0])
    return {"num_steps": int(steps), "reader": reader, "resident_bytes": 1024 * kilobytes}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--preset", default="maze2d-umaze")
    parser.add_argument("--data", help="a dataset of the preset; collected if not given")
    parser.add_argument("--large-data", help="a large dataset of the preset; collected if not given")
    parser.add_argument("--large-steps", type=int, default=40_000_000, help="to collect for it; 0 takes --data for it")
    parser.add_argument("--worker-steps", type=int, default=80, help="steps of a turn of the workers")
    parser.add_argument("--memory-steps", type=int, default=50, help="steps of the large dataset's training")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--worker-batch-sizes", type=int, nargs="+", default=[64, 256, 512])
    parser.add_argument("--worker-rounds", type=int, default=3)
    parser.add_argument("--block", type=int, default=10, help="steps of a turn")
    quick = {"preset": "maze2d-umaze-smoke", "batch_sizes": [64], "rounds": 1, "block": 1, "worker_batch_sizes": [64]}
    quick |= {"worker_rounds": 1, "worker_steps": 8, "large_steps": 0, "memory_steps": 2}
    args = parse_arguments(parser, quick)
    data = args.data or str(find_dataset(args.preset))
    large_data = args.large_data or (str(find_dataset(args.preset, args.large_steps)) if args.large_steps else data)
    preset = get_preset(args.preset)
    windows = dataclasses.replace(preset.windows, min_horizon=HORIZON, max_horizon=HORIZON)
    fixed = dataclasses.replace(preset, windows=windows)
    sizes = {}
    print("batch    ours ms  passes ms  plain ms (0, 1 loader processes)  over plain  overhead")
    for batch_size in args.batch_sizes:
        config = with_overrides(fixed, {"training.batch_size": batch_size})
        sizes[str(batch_size)] = row = compare(config, data, args.rounds, args.block)
        print(
            f"{batch_size:5d}  {row['ours_milliseconds']:9.1f}  {row['passes_milliseconds']:9.1f}  "
            f"{row['plain_0_loader_processes_milliseconds']:9.1f}, {row['plain_1_loader_processes_milliseconds']:8.1f}"
            f"  {row['speedup_over_plain_loop']:22.2f}  {row['step_overhead']:8.1%}",
            flush=True,
        )
    workers = {}
    for batch_size in args.worker_batch_sizes:
        overrides = {"training.num_steps": args.worker_steps, "training.batch_size": batch_size}
        overrides["training.log_interval"] = args.worker_steps // 4
        row = compare_workers(with_overrides(fixed, overrides), data, rounds=args.worker_rounds)
        workers[str(batch_size)] = row
        print(
            f"workers of one thread, batch {batch_size}: one {row['one_worker_steps_per_second']:.1f} steps/s, "
            f"two {row['two_workers_steps_per_second']:.1f} = {row['two_workers_over_one']:.2f} x",
            flush=True,
        )
    own = sizes[str(preset.training.batch_size)]
    result = {
        "speedup_over_plain_loop": own["speedup_over_plain_loop"],
        "step_overhead": own["step_overhead"],
        "two_workers_over_one": workers[str(max(args.worker_batch_sizes))]["two_workers_over_one"],
        "two_workers_batch_size": max(args.worker_batch_sizes),
        "batch_sizes": sizes,
        "workers": workers,
        "preset": args.preset,
    }
    result["large_data"] = memory = measure_memory(large_data, args.preset, args.memory_steps)
    print(f"{memory['num_steps']:,} steps: {memory['resident_bytes'] / 2**30:.2f} GiB resident ({memory['reader']})")
    write_results(args, result)


if __name__ == "__main__":
    main()
