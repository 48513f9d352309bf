"""How fast training is on a GPU: our steps, with and without CUDA graphs, beside those of a plain loop in one run.

The plain loop is that of `benchmarks/training.py`, its batches sent to the GPU; it takes fewer steps a turn the larger
they are. Steps of ours are those of `train`, batches made ahead included; without CUDA graphs they are timed for the
smallest batch alone, and through torch.compile in bfloat16 alone.

How long a step's kernels take is read from a trace (torch.profiler) of further steps: the union of their intervals. It
is compared with the time of a step without a trace, and with the span of the trace, in which the profiler keeps the
host busy.

    python benchmarks/training_gpu.py
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from harness import find_dataset, make_parser, parse_arguments, require_gpu, write_results
from torch.profiler import ProfilerActivity, profile
from training import HORIZON, PlainLoop

from diffplan.config import Config, with_overrides
from diffplan.data.format.dataset import TrajectoryDataset, open_dataset
from diffplan.tasks.registry import get_preset
from diffplan.training.batches import TrainingBatches
from diffplan.training.loop import TrainingProgress, train
from diffplan.training.state import TrainingState

GPU = torch.device("cuda")
PLAIN = "plain"


class OurRun:
    """Steps of `train` on the GPU."""

    def __init__(self, config: Config, dataset: TrajectoryDataset, block: int) -> None:
        self.block = block
        self.batches = TrainingBatches(config, dataset, device=GPU)
        self.state = TrainingState(config, self.batches.layout, GPU)
        self.time_block()  # compiles and records

    def time_block(self) -> float:
        """Seconds of a step, from the first logged step to the last."""
        rates: list[TrainingProgress] = []
        train(
            self.state,
            self.batches,
            device=GPU,
            num_steps=self.state.step + self.block,
            on_progress=lambda progress: rates.append(progress),
        )
        torch.cuda.synchronize()
        return statistics.median(1 / progress.steps_per_second for progress in rates[1:])


class PlainRun:
    """The plain loop on the GPU."""

    def __init__(self, config: Config, dataset: TrajectoryDataset, block: int, num_loader_workers: int) -> None:
        self.block = block
        self.loop = PlainLoop(config, dataset, num_loader_workers, GPU)
        self.time_block()

    def time_block(self) -> float:
        """Seconds of a step, the mean over a block."""
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(self.block):
            self.loop.take_step()
        torch.cuda.synchronize()
        return (time.perf_counter() - began) / self.block


def measure_kernel_share(run: OurRun) -> dict[str, float]:
    """Share of the time in kernels, and kernels and microseconds in kernels of a step, from a trace."""
    run.block = num_steps = 2 * run.state.config.training.log_interval
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run.time_block()
    with tempfile.TemporaryDirectory() as directory:
        trace = Path(directory) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    spans = sorted(
        (event["ts"], event["ts"] + event["dur"]) for event in events if event.get("cat") in ("kernel", "gpu_memcpy")
    )
    spans = spans[len(spans) // 4 :]  # the first steps record anew and find no batch made ahead
    busy, end = 0.0, spans[0][0]
    for began, ended in spans:
        busy += max(0.0, ended - max(began, end))
        end = max(end, ended)
    span = end - spans[0][0]
    num_steps = num_steps * 3 / 4
    return {
        "kernel_share": busy / span,
        "kernels_per_step": len(spans) / num_steps,
        "kernel_milliseconds_per_step": busy / 1e3 / num_steps,
    }


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--data", help="a dataset of the preset; collected if not given")
    parser.add_argument("--preset", default="maze2d-umaze")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[32, 64, 128, 256, 512, 1024])
    parser.add_argument("--compiled", type=int, nargs="*", default=[256], help="batch sizes to compile for as well")
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--block", type=int, default=200, help="steps of a turn")
    parser.add_argument("--plain-block", type=int, default=40, help="steps of a turn of the plain loop")
    quick = {"preset": "maze2d-umaze-smoke", "batch_sizes": [32], "compiled": [], "precisions": ["float32"]}
    args = parse_arguments(parser, quick | {"rounds": 1, "block": 40, "plain_block": 5})
    require_gpu()
    torch.set_num_threads(min(8, os.cpu_count() or 1))
    preset = get_preset(args.preset)
    windows = dataclasses.replace(preset.windows, min_horizon=HORIZON, max_horizon=HORIZON)
    log_interval = args.block // 8
    common = {"training.num_steps": 10**9, "training.checkpoint_interval": 10**9, "training.log_interval": log_interval}
    fixed = with_overrides(dataclasses.replace(preset, windows=windows), common)
    dataset = open_dataset(args.data or find_dataset(args.preset))
    sizes: dict[str, Any] = {}
    for batch_size in args.batch_sizes:
        config = with_overrides(fixed, {"training.batch_size": batch_size})
        runs: dict[str, OurRun | PlainRun] = {}
        for precision in args.precisions:
            modes = ["off"] if batch_size == args.batch_sizes[0] else []
            modes += ["cuda_graphs", *(["on"] if batch_size in args.compiled and precision == "bfloat16" else [])]
            for mode in modes:
                began = time.perf_counter()
                overrides = {"training.precision": precision, "training.compile": mode}
                torch._dynamo.reset()
                runs[f"{mode}_{precision}"] = OurRun(with_overrides(config, overrides), dataset, args.block)
                print(f"  {mode} {precision}: ready in {time.perf_counter() - began:.1f} s", flush=True)
        plain_block = max(5, args.plain_block * args.batch_sizes[0] // batch_size)
        for num_workers in (0, 1):
            runs[f"{PLAIN}_{num_workers}_loader_processes"] = PlainRun(config, dataset, plain_block, num_workers)
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(args.rounds):
            for name, run in runs.items():
                times[name].append(run.time_block())
        row: dict[str, Any] = {f"{name}_milliseconds": 1e3 * statistics.median(t) for name, t in times.items()}
        plain = [min(pair) for pair in zip(*(times[name] for name in times if name.startswith(PLAIN)), strict=True)]
        for name, run in runs.items():
            if isinstance(run, OurRun):
                row[f"{name}_over_plain"] = statistics.median(p / o for p, o in zip(plain, times[name], strict=True))
                row[f"{name}_samples_per_second"] = batch_size / statistics.median(times[name])
                row[f"{name}_trace"] = trace = measure_kernel_share(run)
                row[f"{name}_kernel_share"] = trace["kernel_milliseconds_per_step"] / row[f"{name}_milliseconds"]
        sizes[str(batch_size)] = row
        print(f"batch {batch_size}: plain {1e3 * statistics.median(plain):.2f} ms", flush=True)
        for name in times:
            if f"{name}_over_plain" in row:
                trace = row[f"{name}_trace"]
                print(
                    f"  {name:24s} {row[f'{name}_milliseconds']:7.2f} ms  {row[f'{name}_over_plain']:6.1f} x  "
                    f"in kernels {row[f'{name}_kernel_share']:.1%}, {trace['kernels_per_step']:.0f} of them",
                    flush=True,
                )
    write_results(args, {"batch_sizes": sizes, "horizon": HORIZON, "preset": args.preset})


if __name__ == "__main__":
    main()
