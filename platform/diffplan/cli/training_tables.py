"""The output of `diffplan train` without training: the presets, and the cost of a run."""

from __future__ import annotations

import os

import torch

from diffplan.config import Config
from diffplan.data.format.dataset import open_dataset
from diffplan.data.maintenance.oddities import find_oddities
from diffplan.tasks.registry import find_preset, list_presets
from diffplan.terminal import draw_table, format_bytes, format_duration
from diffplan.training.cost import (
    NUM_PROBED_STEPS,
    UTILISATION,
    TrainingCost,
    count_parameters,
    estimate_cost,
    estimate_seconds,
    measure_matmul_throughput,
)
from diffplan.training.environment import check_environment
from diffplan.training.objectives import make_objective
from diffplan.training.threads import keep_team

GIGA = 1e9
BUSY_SHARE = 0.5
"""Load per CPU over the last minute above which measured times are unreliable (too long)."""
HEADER = (
    "preset",
    "horizon",
    "stride",
    "columns",
    "diffusion",
    "parameters",
    "steps",
    "batch",
    "expected time",
)


def describe_presets() -> list[str]:
    """Lines of a table of all presets."""
    throughput = measure_matmul_throughput()
    rows = [_describe_preset(name, throughput) for name in list_presets()]
    return [
        *draw_table(HEADER, rows),
        "",
        "horizon and stride of the windows; columns of a transition, actions + observations; diffusion steps; batch:",
        "passes of a step x windows of a pass. The expected time is a rough estimate for the CPUs of this machine: all",
        f"floating-point operations at {UTILISATION:.0%} of the {throughput / GIGA:.0f} GFLOP/s that large matrix "
        "products reach right now.",
        "It may be half of the real time, and for very short horizons a fifth. To measure it:",
        "diffplan train PRESET --data DIR --out DIR --dry_run",
    ]


def describe_cost(
    name: str, config: Config, data: str, num_threads: int | None = None, *, is_other_env: bool = False
) -> list[str]:
    """Lines about the cost of training on a dataset, measured in a few steps that write nothing.

    Args:
        name: of the preset.
        config: the experiment.
        data: directory or URL of the dataset.
        num_threads: threads of a worker on CPUs; torch's default if None.
        is_other_env: whether the experiment names another environment than the data on purpose.

    Raises:
        DataError: the dataset is missing or damaged, or a horizon has no window.
        ConfigError: the config does not fit the data.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dataset = open_dataset(data)
    check_environment(config, dataset, is_other=is_other_env)
    with keep_team(num_threads or None):
        cost = estimate_cost(config, dataset, device)
        where = f"{device}, not compiled" if device == "cuda" else f"{device}, threads: {torch.get_num_threads()}"
    total, *parts = _describe_memory(cost)
    facts = {
        "parameters": f"{cost.num_parameters:,}",
        "arithmetic": f"{cost.step_flops / GIGA:.2f} GFLOP a step, forward and backward",
        "windows": f"{cost.num_windows:,.0f} in an epoch, {cost.windows_per_step:,} in a step",
        "epoch": f"{cost.steps_per_epoch:,.1f} steps; the run of {cost.num_steps:,} steps has "
        f"{cost.num_steps / cost.steps_per_epoch:.2f} epochs",
        "memory": total,
        "": ", ".join(parts),
        "step": f"{1e3 * cost.step_seconds:.1f} ms, {cost.step_flops / cost.step_seconds / GIGA:.1f} GFLOP/s "
        f"(median of {NUM_PROBED_STEPS}; {where})",
        "batches": f"{1e3 * cost.batch_seconds:.1f} ms a step, made beside the steps before from {cost.storage}",
        "time": f"about {format_duration(cost.total_seconds)}, without checkpoints and validations",
    }
    if device == "cpu" and (load := os.getloadavg()[0]) > BUSY_SHARE * (os.cpu_count() or 1):
        facts["note"] = f"other programs are at work here (load {load:.1f}): alone it would be faster"
    return [
        f"{name} on {data}: a dry run, nothing is written",
        *(f"{key:<12}{facts[key]}" for key in facts),
        *(f"warning: {line}" for line in find_oddities(dataset, make_objective(config).windows)),
    ]


def _describe_preset(name: str, throughput: float) -> list[str]:
    preset = find_preset(name)
    config, layout = preset.config, preset.layout
    windows, training = config.windows, config.training
    low, high = windows.horizons[0], windows.horizons[-1]
    passes = f"{training.accumulation_steps} x " if training.accumulation_steps > 1 else ""
    known = layout is not None
    seconds = estimate_seconds(config, layout.transition_dim, throughput) if known else None
    return [
        name,
        str(low) if low == high else f"{low}-{high}",
        str(windows.stride),
        f"{layout.action_dim} + {layout.observation_dim}" if known else "of the data",
        str(config.diffusion.num_diffusion_steps),
        f"{count_parameters(config.network, layout.transition_dim, config.windows.max_horizon):,}" if known else "-",
        f"{training.num_steps:,}",
        f"{passes}{training.batch_size}",
        "-" if seconds is None else format_duration(seconds),
    ]


def _describe_memory(cost: TrainingCost) -> list[str]:
    """The total, and its parts."""
    memory = cost.memory
    parts = {
        "parameters": memory.parameters,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        "average": memory.average,
        "activations": memory.activations,
        "data": memory.data,
    }
    named = [f"{name} {format_bytes(num_bytes)}" for name, num_bytes in parts.items() if num_bytes]
    return [format_bytes(memory.total), *named]
