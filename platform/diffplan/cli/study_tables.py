"""The output of `diffplan tune --list`: the studies of all tasks, and their costs."""

from __future__ import annotations

from diffplan.config import SearchConfig
from diffplan.config.study import Study
from diffplan.evaluation.protocol import list_protocols
from diffplan.tasks.registry import DEFAULT_TASK, find_task, list_task_presets, list_tasks
from diffplan.terminal import draw_table, format_duration
from diffplan.training.cost import estimate_seconds, measure_matmul_throughput
from diffplan.tuning.studies import list_studies, size_search

SECONDS_PER_EPISODE = 0.06
"""Seconds of a trial on one CPU core, with a calibrated planner that replans rarely; measured by the search in
docs/tuning.md."""
HEADER = ("study", "kind", "objectives", "trials", "varies", "time")


def describe_studies() -> list[str]:
    """Lines of a table of all studies by task, with the fields that each varies."""
    throughput = measure_matmul_throughput()
    lines = []
    for name in list_tasks():
        task = find_task(name)
        if not task.studies and name != DEFAULT_TASK:
            continue
        preset_name, preset = next(iter(list_task_presets(task).items()))
        layout = preset.layout
        training = 0.0 if layout is None else estimate_seconds(preset.config, layout.transition_dim, throughput)
        rows, notes = [], []
        for study_name, study in list_studies(task).items():
            search = size_search(study, preset.config.search)
            protocols = list_protocols(preset.config.env, preset.config.search.protocols)
            cost = search.num_trials * estimate_trial_seconds(study, search, training, max(len(protocols), 1))
            row = [study_name, study.kind, ", ".join(study.objectives), str(search.num_trials), str(len(study.vary))]
            known = layout is not None
            rows.append([*row, format_duration(cost / search.max_concurrent_trials) if known else "-"])
            notes += ["", f"{study_name}: {study.description}", *_wrap(", ".join(study.vary))]
        title = "every other task" if name == DEFAULT_TASK else f"task {name} (times of {preset_name})"
        lines += [title, *draw_table(HEADER, rows, left=3), *notes, ""]
    return [
        *lines,
        "The time is a rough one on two CPU cores, if no trial were stopped early; with one objective most are. Of a",
        "study of kind training it rests on the speed of this machine right now.",
        "Sizes: --num_trials, --episodes_per_block, --num_blocks, --num_training_steps. A study of your own:",
        "--study FILE.json, see docs/tuning.md.",
    ]


def estimate_trial_seconds(
    study: Study, search: SearchConfig, training_seconds: float, num_protocols: int = 1
) -> float:
    """A rough time of a full trial on one CPU core.

    Args:
        study: study of the trial.
        search: number and size of its blocks.
        training_seconds: training time of the whole experiment.
        num_protocols: number of protocols that trials are scored on, if the search names none.
    """
    blocks = search.num_blocks
    if study.kind == "training":  # each block evaluates the new model on the episodes of all blocks so far
        blocks = search.num_blocks * (search.num_blocks + 1) // 2
    seconds = blocks * search.episodes_per_block * (len(search.protocols) or num_protocols) * SECONDS_PER_EPISODE
    return seconds + (study.training_share * training_seconds if study.kind == "training" else 0.0)


def _wrap(text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text, 100, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
