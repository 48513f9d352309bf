"""Files with one thing wrong, of the kinds that `tests/test_fuzz_files.py` tries all of."""

import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import test_fuzz_files as fuzz
import torch

from diffplan.checkpoint import load_checkpoint, load_companion, save_companion, save_planning_checkpoint
from diffplan.cli import main
from diffplan.data.format.dataset import open_dataset, read_manifest
from diffplan.data.format.episodes import EpisodeTable
from diffplan.data.format.manifest import Manifest
from diffplan.data.format.record import encode_record
from diffplan.data.format.snapshot import DatasetState, read_state, write_state
from diffplan.errors import CheckpointError, DataError, DiffplanError
from diffplan.planning.loading import load_planner
from diffplan.runs.usage import Usage
from diffplan.storage.opening import open_store

DEPTH = 100_000


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files")
    fuzz.make_files(path)
    return path


@pytest.mark.parametrize("target", fuzz.TARGETS, ids=lambda target: f"{target.name}-{target.load.__name__}")
def test_deeply_nested_json_is_one_line(root: Path, target: fuzz.Target) -> None:
    path, record = root / target.name, (root / "checkpoint" / "config.json").read_bytes()
    whole = path.read_bytes()
    try:
        for depth in (70, DEPTH):
            target.dump(path, whole, '{"x": ' + "[" * depth + "]" * depth + "}")
            with pytest.raises(DiffplanError) as caught:
                target.use(root)
            assert "\n" not in str(caught.value)
            assert len(str(caught.value)) < 4000
    finally:
        (root / "checkpoint" / "config.json").write_bytes(record)
        path.unlink()
        path.write_bytes(whole)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_are_finite(tmp_path: Path, number: float) -> None:
    fuzz.make_checkpoint(tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    save_companion(tmp_path, "value", {"a": torch.tensor([1.0, number])}, {})
    with pytest.raises(CheckpointError, match="a: expected finite weights, got NaN or infinity"):
        load_companion(tmp_path, "value")
    name = next(name for name, value in checkpoint.weights.items() if value.is_floating_point())
    checkpoint.weights[name].flatten()[0] = number
    save_planning_checkpoint(tmp_path / "again", checkpoint)
    with pytest.raises(CheckpointError, match="expected finite weights, got NaN or infinity") as caught:
        load_checkpoint(tmp_path / "again")
    assert name in str(caught.value)


@pytest.mark.parametrize("settings", [[], None, "x"])
def test_settings_of_a_companion_are_an_object(tmp_path: Path, settings: object) -> None:
    fuzz.make_checkpoint(tmp_path)
    save_companion(tmp_path, "value", {"a": torch.zeros(1)}, settings)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="expected a companion model"):
        load_companion(tmp_path, "value")


@pytest.mark.parametrize(
    "change",
    [
        {"beat": None},
        {"beat": 1e400},
        {"done": "4"},
        {"total": 10**400},
        {"values": {"speed": "fast"}},
        {"values": {"speed": float("nan")}},
        {"values": 3},
        {"outcome": "lost"},
        {"error": 3},
        {"rate": "x"},
        {"attempt": None},
    ],
)
def test_a_damaged_record_of_an_attempt_is_one_line(root: Path, change: dict[str, object]) -> None:
    values = json.loads((root / "evaluation" / "usage" / "attempt.json").read_text())
    assert Usage.from_json(json.dumps(values).encode(), "file").stage == "evaluate"
    with pytest.raises(DataError, match="file: expected the record of an attempt, got something else"):
        Usage.from_json(json.dumps({**values, **change}).encode(), "file")


def change_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    index = table.schema.get_field_index(name)
    return table.set_column(index, table.schema.field(index), values)


SNAPSHOTS: dict[str, Callable[[pa.Table], pa.Table]] = {
    "have no behavior": lambda t: change_column(t, "behavior", pa.nulls(len(t), pa.string())),
    "have no terminated": lambda t: change_column(t, "terminated", pa.nulls(len(t), pa.bool_())),
    "have no episode_index": lambda t: change_column(t, "episode_index", pa.nulls(len(t), pa.int64())),
    "undiscounted_return is NaN": lambda t: change_column(
        t, "undiscounted_return", pa.array([np.nan] * len(t), pa.float64())
    ),
    "final_observation is NaN": lambda t: change_column(
        t, "final_observation", pa.array([[np.nan] * 4] * len(t), pa.list_(pa.float32(), 4))
    ),
    "in final_observation is missing": lambda t: change_column(
        t, "final_observation", pa.array([[None] * 4] * len(t), pa.list_(pa.float32(), 4))
    ),
    "has the details": lambda t: change_column(t, "details", pa.array(["[]"] * len(t), pa.string())),
    "levels deep": lambda t: change_column(t, "details", pa.array(["[" * DEPTH + "]" * DEPTH] * len(t), pa.string())),
    "the infos.goal after": lambda t: change_column(
        t, "details", pa.array(['{"final_values": {"infos.goal": [1.0, "x"]}}'] * len(t), pa.string())
    ),
}


@pytest.mark.parametrize("words", SNAPSHOTS)
def test_snapshots_refuse_what_commits_refuse(tmp_path: Path, words: str) -> None:
    fuzz.make_dataset(tmp_path)
    store = open_store(tmp_path)
    manifest = read_manifest(store)
    state = read_state(store, manifest)
    assert state is not None
    table = SNAPSHOTS[words](state.episodes.to_arrow())
    episodes = EpisodeTable({name: state.episodes._core[name] for name in state.episodes._core}, lambda: table)
    assert write_state(store, manifest, DatasetState(state.shards, episodes, state.statistics, base=state.base)) == 1
    with pytest.raises(DataError, match=rf"1\.parquet: expected a snapshot, got something else .*{words}") as caught:
        list(open_dataset(tmp_path).episodes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"dataset_uuid": "../../elsewhere"},
        {"dataset_uuid": None},
        {"env": []},
        {"env_spec": 3},
        {"collection": [1]},
        {"spaces": None},
        {"source": "x"},
        {"action_low": None},
        {"action_low": [None]},
        {"action_high": ["x", 1.0]},
        {"action_high": [float("inf"), 1.0]},
        {"tasks": [{"name": "x", "weight": "x", "dataset_uuid": "y", "env": {}, "num_units": 1}]},
    ],
)
def test_a_wrong_field_of_a_manifest_is_one_line(tmp_path: Path, change: dict[str, object]) -> None:
    fuzz.make_dataset(tmp_path)
    values = {"format": "diffplan-trajectories", "format_version": 1}
    manifest = read_manifest(open_store(tmp_path))
    values |= json.loads(json.dumps({**manifest.__dict__, "columns": [c.__dict__ for c in manifest.columns]}))
    assert Manifest.from_json(encode_record(values), "file") == manifest
    content = json.dumps({**values, **change}).encode()
    rest = content[1:] + b"\n"
    with pytest.raises(DataError, match="file: the manifest lacks or misnames a field") as caught:
        Manifest.from_json(b'{"checksum": "%08x", ' % zlib.crc32(rest) + rest, "file")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("guide", ["1e38*mean(exp(exp(exp(position))))", "mean(position / 0)"])
def test_a_guide_that_leads_to_infinity_is_one_line(capsys: pytest.CaptureFixture[str], guide: str) -> None:
    words = ["plan", "pretrained:maze2d-umaze", "--start", "1", "1", "--goal", "3", "1", "--guides", guide]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "expected finite numbers" in err


def test_checkpoints_that_come_with_tasks_are_finite() -> None:
    for name in ("umaze", "medium", "large"):
        assert load_planner(f"pretrained:maze2d-{name}")
