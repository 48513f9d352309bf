"""Every JSON field and every file that a stranger may have written, damaged in every way: one line each, at once.

All in one process: for each damage the functions of the library that read the file are called. They may work, or raise
a `DiffplanError` of one line; no other exception, no wait, and no byte written outside the given directories.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from diffplan.behaviors.offline_policy import (
    OfflinePolicy,
    PolicyDescription,
    load_offline_policy,
    save_offline_policy,
)
from diffplan.checkpoint import (
    is_checkpoint,
    load_checkpoint,
    load_companion,
    load_training_state,
    publish_checkpoint,
    save_checkpoint,
    save_companion,
)
from diffplan.cli.run_status import read_status
from diffplan.cli.status import describe_status
from diffplan.cluster.train.driver import _pin
from diffplan.cluster.train.storage import LocalRun
from diffplan.config import config_to_dict, config_to_json, with_overrides
from diffplan.data.format.dataset import open_dataset, write_snapshot
from diffplan.data.format.manifest import Column, Manifest, make_columns
from diffplan.data.format.record import decode_record
from diffplan.data.format.snapshot import METADATA_KEY
from diffplan.data.format.writer import create_dataset, write_unit
from diffplan.data.windows.normalization import Normalizer
from diffplan.errors import DiffplanError
from diffplan.evaluation.scores import EpisodeResult, results_to_rows, summarize
from diffplan.evaluation.unit_results import UnitResults
from diffplan.layout import Layout
from diffplan.planning.loading import load_planner
from diffplan.planning.settings import load_settings
from diffplan.report.contents import read_run
from diffplan.report.page import render_page
from diffplan.runs.stages import to_record
from diffplan.runs.usage import record_usage
from diffplan.tasks.registry import find_task, get_preset
from diffplan.training.state import TrainingState
from diffplan.tuning.studies import find_study
from diffplan.types import Episode

pytestmark = pytest.mark.soak

CONFIG = with_overrides(get_preset("maze2d-umaze-smoke"), {"network.dim": 8, "network.dim_mults": (1, 2)})
MAX_SECONDS = 5.0
DEEP = "deep"
"""Stands for lists within lists, which are put in as text: no encoder would write them."""
WRONG = (None, -1, 0, 1.5, math.inf, math.nan, True, "x", "", [], {}, [[]], {"x": None}, 10**30, 10**400, DEEP)
WRONG_BELOW = 8
"""Of these, one in so many for each field of a section: together the fields of a section see all of them."""
PAGE_INTERVAL = 32
"""Runs that are read for each one that a page is made of."""
FOUND: dict[str, int] = {}


@dataclass(frozen=True)
class Target:
    """A file, and what reads it.

    Attributes:
        name: its path below the root.
        use: reads it, given the root.
        load: JSON values of its bytes.
        dump: bytes for JSON text of these values, given the root and the bytes before.
    """

    name: str
    use: Callable[[Path], object]
    load: Callable[[bytes], Any] = json.loads
    dump: Callable[[Path, bytes, str], None] = lambda path, before, text: _write(path, text.encode())


def _write(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def dump_record(path: Path, before: bytes, text: str) -> None:
    """With a checksum of its own, as a faulty writer or a forger makes it."""
    rest = text.encode()[1:] + b"\n"
    _write(path, b'{"checksum": "%08x", ' % zlib.crc32(rest) + rest)


def dump_file(path: Path, before: bytes, text: str) -> None:
    """A file of a checkpoint, with size and checksum in the record to match."""
    dump_bytes(path, text.encode())


def dump_bytes(path: Path, content: bytes) -> None:
    _write(path, content)
    record = json.loads((path.parent / "config.json").read_bytes())
    record["files"][path.name] = {"num_bytes": len(content), "crc32": zlib.crc32(content)}
    (path.parent / "config.json").write_text(json.dumps(record))


def load_snapshot_record(content: bytes) -> Any:
    return decode_record(pq.read_metadata(pa.BufferReader(content)).metadata[METADATA_KEY])


def dump_snapshot_record(path: Path, before: bytes, text: str) -> None:
    rest = text.encode()[1:] + b"\n"
    write_snapshot_file(
        path, pq.read_table(pa.BufferReader(before)), b'{"checksum": "%08x", ' % zlib.crc32(rest) + rest
    )


def write_snapshot_file(path: Path, table: pa.Table, record: bytes) -> None:
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, compression="zstd", write_page_checksum=True) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({METADATA_KEY.decode(): record.decode()})
    _write(path, sink.getvalue().to_pybytes())


def load_details(content: bytes) -> Any:
    return json.loads(pq.read_table(pa.BufferReader(content)).column("details")[0].as_py())


def dump_details(path: Path, before: bytes, text: str) -> None:
    table = pq.read_table(pa.BufferReader(before))
    index = table.schema.get_field_index("details")
    changed = pa.array([text, *table.column("details").to_pylist()[1:]], pa.string())
    record = pq.read_metadata(pa.BufferReader(before)).metadata[METADATA_KEY]
    write_snapshot_file(path, table.set_column(index, "details", changed).replace_schema_metadata(None), record)


def use_dataset(root: Path) -> None:
    dataset = open_dataset(root / "run" / "dataset")
    assert dataset.env
    assert dataset.num_steps
    assert list(dataset.episodes)
    assert dataset.collection is None or dataset.collection.num_steps
    for shard in dataset.shards:
        dataset.column(shard, "observation")
    use_status(root / "run" / "dataset")


def use_status(where: Path) -> None:
    stages = read_status(where)
    describe_status(stages)
    json.dumps(to_record(str(where), stages))


def use_checkpoint(root: Path) -> None:
    path = root / "checkpoint"
    is_checkpoint(path)
    for use in (load_checkpoint, load_training_state, load_planner, lambda path: load_companion(path, "value")):
        try:
            use(path)
        finally:
            shutil.rmtree(root / "published", ignore_errors=True)
    publish_checkpoint(path, root / "published")
    use_status(path)


def use_results(root: Path) -> None:
    use_status(root / "run" / "results")
    contents = read_run(root / "run" / "results")
    FOUND["read"] = FOUND.get("read", 0) + 1
    if FOUND["read"] % PAGE_INTERVAL == 1:  # it takes a second
        render_page(contents)


def use_units(root: Path) -> None:
    use_status(root / "evaluation")
    UnitResults(root / "evaluation", {"episodes": 4, "episodes_per_unit": 2}, resume=True).read()


def use_policy(root: Path) -> None:
    policy = load_offline_policy(root / "policy")
    policy.reset(np.zeros((1, 4), np.float32), np.zeros((1, 2)))
    policy.act(np.zeros((1, 4), np.float32))


def use_pin(root: Path) -> None:
    _pin(open_dataset(root / "pinned"), LocalRun(root / "training"))


TARGETS = (
    Target("run/dataset/_dataset.json", use_dataset, decode_record, dump_record),
    Target("run/dataset/commits/00000001.json", use_dataset, decode_record, dump_record),
    Target("run/dataset/snapshots/0.parquet", use_dataset, load_snapshot_record, dump_snapshot_record),
    Target("run/dataset/snapshots/0.parquet", use_dataset, load_details, dump_details),
    Target("checkpoint/config.json", use_checkpoint),
    Target("checkpoint/normalization.json", use_checkpoint, dump=dump_file),
    Target("checkpoint/dataset.json", use_checkpoint, dump=dump_file),
    Target("checkpoint/calibration.json", lambda root: use_status(root / "calibrated")),
    Target("settings.json", lambda root: load_settings(root / "settings.json")),
    Target("study.json", lambda root: find_study(root / "study.json", find_task("maze2d"))),
    Target("evaluation/usage/attempt.json", lambda root: use_status(root / "evaluation")),
    Target("evaluation/units/0.json", use_units),
    Target("evaluation/units/evaluation.json", use_units),
    Target("run/results/evaluation/maze2d/summary.json", use_results),
    Target("run/results/search/best.json", use_results),
    Target("run/results/search/trials.json", use_results),
    Target("run/results/search/importances.json", use_results),
    Target("run/results/search/pareto.json", use_results),
    Target("run/results/pipeline.json", use_results),
    Target("run/results/config.json", use_results),
    Target("policy/policy.json", use_policy),
    Target("training/pinned.json", use_pin),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Files of all kinds, whole; and beside them what nobody may touch."""
    parent = tmp_path_factory.mktemp("fuzz")
    root = parent / "given"
    make_files(root)
    (parent / "mine").mkdir()
    (parent / "mine" / "file").write_text("mine")
    before = list_tree(parent)
    yield root
    assert list_tree(parent) == before


def list_tree(parent: Path) -> dict[str, bytes]:
    """What lies beside the given directory."""
    paths = [path for path in parent.rglob("*") if not path.is_relative_to(parent / "given")]
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in paths}


def make_files(root: Path) -> None:
    make_dataset(root / "run" / "dataset")
    make_checkpoint(root / "checkpoint")
    (root / "calibrated").mkdir()
    (root / "calibrated" / "checkpoint").symlink_to(root / "checkpoint")
    (root / "calibrated" / "config.json").write_text(config_to_json(CONFIG))
    (root / "settings.json").write_text(json.dumps(config_to_dict(CONFIG.planning)))
    vary = {"planning.guidance.scale": {"low": 1.0, "high": 2.0}, "planning.sampling.num_steps": {"among": [2, 4]}}
    (root / "study.json").write_text(json.dumps({"description": "x", "vary": vary, "objectives": ["score_mean"]}))
    make_results(root / "run" / "results")
    make_evaluation(root / "evaluation")
    tensors = {
        "layers.0.weight": torch.zeros(4, 6),
        "layers.0.bias": torch.zeros(4),
        "observation_center": torch.zeros(6),
        "observation_scale": torch.ones(6),
    }
    description = PolicyDescription(
        "iql", CONFIG.env, None, 2, (-1.0, -1.0), (1.0, 1.0), 0.05, "tanh", {"seconds": 1.0}
    )
    save_offline_policy(root / "policy", OfflinePolicy(tensors, description))
    (root / "training").mkdir()
    make_dataset(root / "pinned")
    use_pin(root)


def make_dataset(path: Path) -> None:
    manifest = Manifest(
        dataset_uuid="0000-1111",
        env=config_to_dict(CONFIG.env),
        collection=config_to_dict(CONFIG.collection),
        columns=make_columns(4, 2, (Column("infos.goal", (2,), "float32", has_final=True),)),
        action_low=[-1.0, -1.0],
        action_high=[1.0, 1.0],
    )
    create_dataset(path, manifest)
    for unit in range(2):
        episode = Episode(
            episode_index=unit,
            seed=unit,
            behavior="waypoint",
            observations=np.ones((6, 4), np.float32),
            actions=np.zeros((5, 2), np.float32),
            rewards=np.zeros(5, np.float32),
            terminated=False,
            truncated=True,
            columns={"infos.goal": np.ones((6, 2), np.float32)},
            options={"goal": 1},
        )
        write_unit(path, manifest, unit, [episode])
        if unit == 0:
            write_snapshot(open_dataset(path))


def make_checkpoint(path: Path) -> None:
    state = TrainingState(CONFIG, Layout(4))
    save_checkpoint(
        path,
        config=CONFIG,
        layout=Layout(4),
        step=3,
        normalizer=Normalizer(np.zeros(4, np.float32), np.ones(4, np.float32)),
        weights=state.average_weights(),
        dataset={"path": "somewhere", "snapshot": 0},
        training_state=state.state_dict(),
        return_range=(0.0, 1.0),
    )
    save_companion(path, "support", {"points": torch.zeros(3, 2)}, {})
    (path / "calibration" / "usage").mkdir(parents=True)
    (path / "calibration.json").write_text(json.dumps({"plans": {"num_plans": 4}, "data": None}))


def make_episodes() -> list[EpisodeResult]:
    return [
        EpisodeResult(
            episode=i,
            seed=i,
            goal=[1.0, 1.0],
            start=[3.0, 1.0, 0.0, 0.0],
            undiscounted_return=2.0,
            score=1.0 + i,
            success=i > 0,
            time_to_goal_steps=10 * i if i else None,
            length=30,
            horizon=8,
            plan_speed_error=1.0,
            num_plans=1,
            plan_seconds=0.1,
        )
        for i in range(2)
    ]


def make_results(run: Path) -> None:
    out = run / "evaluation" / "maze2d"
    out.mkdir(parents=True)
    config = {"env": config_to_dict(CONFIG.env), "planning": config_to_dict(CONFIG.planning), "goal": None}
    summary = summarize(
        make_episodes(),
        env_id=CONFIG.env.env_id,
        protocol="maze2d",
        references=(1.0, 2.0),
        wall_seconds=1.0,
        config=config,
    )
    (out / "summary.json").write_text(json.dumps(summary))
    pq.write_table(pa.Table.from_pylist(results_to_rows(make_episodes())), out / "episodes.parquet")
    search = run / "search"
    search.mkdir()
    numbers = {"objective": 1.0, "score_mean": 1.0, "success_rate": 1.0, "plan_seconds": 0.1, "episodes": 4}
    params = {"planning.guidance.scale": 0.5}
    trials = [{"trial": i, "params": params, "error": None, "is_full": True, **numbers} for i in range(2)]
    best = {"settings": config_to_dict(CONFIG.planning), "params": params, **numbers, "protocols": ["maze2d"]}
    best |= {"wall_seconds": 1.0, "num_trials": 2, "search": {"objective": "return"}}
    point = {"trial": 0, "settings_file": "front/trial_0.json", **numbers}
    pareto = {"objectives": ["score_mean", "plan_seconds"], "best": 0, "points": [point]}
    for name, values in (
        ("best", best),
        ("trials", trials),
        ("importances", {"score_mean": {"planning.guidance.scale": 1.0}}),
        ("pareto", pareto),
    ):
        (search / f"{name}.json").write_text(json.dumps(values))
    pipeline = {"preset": "x", "command": "y", "machine": {"cpus": 2}, "stages": [{"name": "collect", "seconds": 3.0}]}
    (run / "pipeline.json").write_text(json.dumps(pipeline))
    (run / "config.json").write_text(config_to_json(CONFIG))


def make_evaluation(out: Path) -> None:
    results = UnitResults(out, {"episodes": 4, "episodes_per_unit": 2}, resume=False)
    results.write(0, make_episodes())
    with record_usage(out, "evaluate", cpus=2, total=4, unit="episodes") as usage:
        usage.show(speed=1.0)
        usage.count(2)
    (record,) = (out / "usage").iterdir()
    values = json.loads(record.read_text())
    record.unlink()
    (out / "usage" / "attempt.json").write_text(json.dumps({**values, "outcome": "running", "beat": time.time() + 1e5}))


def list_places(values: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all fields; of a list its first entries."""
    yield place
    items = values.items() if isinstance(values, dict) else enumerate(values[:2]) if isinstance(values, list) else ()
    for key, value in items:
        yield from list_places(value, (*place, key))


def put(values: Any, place: tuple[Any, ...], wrong: object) -> str:
    """JSON text of the values with another one at a place."""
    if place:
        values = json.loads(json.dumps(values))
        section = values
        for key in place[:-1]:
            section = section[key]
        section[place[-1]] = "@" if wrong == DEEP else wrong
    else:
        values = "@" if wrong == DEEP else wrong
    text = json.dumps(values).replace("Infinity", "1e400")
    return text.replace('"@"', "[" * 100_000 + "]" * 100_000) if wrong == DEEP else text


def remove(values: Any, place: tuple[Any, ...]) -> str:
    """JSON text of the values without a field."""
    values = json.loads(json.dumps(values))
    section = values
    for key in place[:-1]:
        section = section[key]
    del section[place[-1]]
    return json.dumps(values)


def try_damage(target: Target, root: Path, what: str) -> str | None:
    """A line about what went wrong, other than an error of one line at once."""
    since, said = time.monotonic(), None
    try:
        target.use(root)
    except DiffplanError as error:
        FOUND["refused"] = FOUND.get("refused", 0) + 1
        if "\n" in str(error) or len(str(error)) > 4000:
            said = f"a message of {len(str(error))} characters or several lines: {str(error)[:200]!r}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        said = f"{type(error).__name__}: {str(error)[:200]}"
    else:
        FOUND["taken"] = FOUND.get("taken", 0) + 1
    seconds = time.monotonic() - since
    if seconds > MAX_SECONDS:
        said = f"{said or 'no error'} after {seconds:.1f} s"
    return None if said is None else f"{target.name}: {what}: {said}"


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"{target.name}-{target.load.__name__}")
def test_every_field_may_be_wrong(root: Path, target: Target) -> None:
    path = root / target.name
    whole, record = path.read_bytes(), (root / "checkpoint" / "config.json").read_bytes()
    values = target.load(whole)
    assert try_damage(target, root, "whole") is None
    refused = FOUND.get("refused", 0)
    faults: list[str | None] = []
    for number, place in enumerate(list_places(values)):
        chosen = WRONG if len(place) < 3 else WRONG[number % WRONG_BELOW :: WRONG_BELOW]
        texts = {repr(wrong)[:20]: put(values, place, wrong) for wrong in chosen}
        if place and isinstance(place[-1], str):
            texts["removed"] = remove(values, place)
        for wrong, text in texts.items():
            try:
                target.dump(path, whole, text)
            except (OverflowError, UnicodeEncodeError):
                continue
            faults.append(try_damage(target, root, f"{'.'.join(map(str, place))} = {wrong}"))
            _write(root / "checkpoint" / "config.json", record)
            _write(path, whole)
    found = [fault for fault in faults if fault is not None]
    assert not found, f"{len(found)} of {len(faults)}:\n" + "\n".join(found[:60])
    assert FOUND["refused"] > refused


def damage_structure(path: Path, whole: bytes) -> Iterator[str]:
    """Damages of a file as a whole, each in its place while the caller looks."""
    for what in ("missing", "pipe", "device", "itself", "elsewhere", "directory", "empty", "half", "garbage", "text"):
        path.unlink()
        if what == "pipe":
            os.mkfifo(path)
        elif what in ("device", "itself", "elsewhere"):
            path.symlink_to({"device": "/dev/zero", "itself": path, "elsewhere": "/etc/hostname"}[what])
        elif what == "directory":
            path.mkdir()
        elif what != "missing":
            garbage = np.random.default_rng(0).bytes(len(whole))
            path.write_bytes(
                {"empty": b"", "half": whole[: len(whole) // 2], "garbage": garbage, "text": b"\xff{"}[what]
            )
        yield what
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
        path.write_bytes(whole)


@pytest.mark.parametrize("directory", ["run", "checkpoint", "evaluation", "policy", "training"])
def test_every_file_may_be_something_else(root: Path, directory: str) -> None:
    uses = {"run": (use_dataset, use_results), "checkpoint": (use_checkpoint,), "evaluation": (use_units,)}
    uses |= {"policy": (use_policy,), "training": (use_pin,)}
    faults = []
    for path in sorted(path for path in (root / directory).rglob("*") if path.is_file()):
        whole, record = path.read_bytes(), (root / "checkpoint" / "config.json").read_bytes()
        name = path.relative_to(root).as_posix()
        for what in damage_structure(path, whole):
            for use in uses[directory]:
                faults.append(try_damage(Target(name, use), root, what))
            if name != "checkpoint/config.json":
                _write(root / "checkpoint" / "config.json", record)
    found = [fault for fault in faults if fault is not None]
    assert not found, f"{len(found)} of {len(faults)}:\n" + "\n".join(found[:40])
