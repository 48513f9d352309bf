"""Commits and snapshots of a faulty writer: their checksums match, but what they say cannot be."""

import copy
import json
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_up_episodes import commit_of, require_undamaged, write_dataset

from diffplan.data.format.dataset import open_dataset, write_snapshot
from diffplan.data.format.record import decode_record, encode_record
from diffplan.data.format.snapshot import METADATA_KEY
from diffplan.errors import DataError

EPISODE, REWARD, GOAL = ("episodes", 1), ("statistics", "reward"), ("statistics", "goal")
ABSENT = object()
WRONG = {
    ("unit",): [None, -1, 2**31, 0.0, "0", True],
    ("dataset_uuid",): [None, 7, ""],
    ("attempt",): [None, 7, ABSENT],
    ("shard", "name"): [None, "", 7, ["shards"], "../outside.arrow"],
    ("shard", "num_bytes"): [None, -1, 0, 2**70, 1.5, "1"],
    ("shard", "num_rows"): [None, -1, 0, 2**31, True],
    ("shard", "offsets"): [None, {}, [], {"reward": 0}],
    ("shard", "offsets", "reward"): [None, -8, 2**40, 1.5, "64"],
    ("shard", "checksums"): [None, [], ["x"], [-1], [1, 2]],
    ("episodes",): [None, [], {}, [None]],
    (*EPISODE, "episode_index"): [None, 0, 2**63, 1.0, "1", [1]],
    (*EPISODE, "seed"): ["x", 2**63, 1.5, [7]],
    (*EPISODE, "behavior"): [None, 7, ["waypoint"]],
    (*EPISODE, "first_row"): [None, -1, 4, 6, 5.0],
    (*EPISODE, "length"): [None, 0, -7, 7.0, 2**40],
    (*EPISODE, "undiscounted_return"): [None, "x", 2**70, float("inf")],
    (*EPISODE, "terminated"): [None, 0, "no"],
    (*EPISODE, "truncated"): [None, 1, []],
    (*EPISODE, "final_observation"): [None, [], [0.0] * 2, [0.0] * 4, "abc", 0.0, [[0.0]] * 3],
    (*EPISODE, "final_observation", 0): [None, "nan", "x", 1e39, 2**70, [0.0], True],
    (*EPISODE, "task"): [None, -1, 2**15, "0"],
    (*EPISODE, "final_values"): [None, [], {"goal": [0.0]}],
    (*EPISODE, "options"): [7, [], "none"],
    (*EPISODE, "further"): [7],
    ("statistics",): [None, {}, []],
    REWARD: [None, ABSENT, []],
    (*REWARD, "count"): [None, 12, [11], [-1], [2**70], [12, 12], ["12"]],
    (*REWARD, "mean"): [None, 0.5, [], [None], ["x"], [float("inf")], [[0.0]]],
    (*REWARD, "m2"): [None, [], [-1.0], [float("inf")], [0.0, 0.0]],
    (*REWARD, "minimum"): [None, [], [1e9], [0.0, 0.0]],
    (*REWARD, "maximum"): [None, [], [-1e9], [True, False]],
    (*REWARD, "quantiles"): [None, [], [0.0] * 257, [[0.0]] * 256, [[0.0, 0.0]] * 257],
    (*REWARD, "num_nonfinite"): [None, [1], [-1], [2**70], [1.5]],
    (*GOAL, "mean"): [[0.0], [0.0] * 3],
}
CASES = [(path, value) for path, values in WRONG.items() for value in values]


def changed(values: Any, path: tuple[Any, ...], value: Any) -> Any:
    values = copy.deepcopy(values)
    parent = values
    for key in path[:-1]:
        parent = parent[key]
    if value is ABSENT:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return values


def put(path: Path, values: dict[str, Any]) -> None:
    """Write a record as a writer would that does not mind infinite numbers."""
    rest = json.dumps(values).encode()[1:] + b"\n"
    path.write_bytes(b'{"checksum": "%08x", ' % zlib.crc32(rest) + rest)


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("records")
    write_dataset(root, [[5, 7], [4, 8]])
    return root


def require_refusal(read, root: Path, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        read(root)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def describe(case: Any) -> str:
    return ".".join(map(str, case)) if isinstance(case, tuple) else "absent" if case is ABSENT else repr(case)[:20]


@pytest.mark.parametrize(("path", "value"), CASES, ids=describe)
def test_commit(shared, path, value):
    commit = commit_of(shared, 0)
    good = commit.read_bytes()
    values = decode_record(good)
    wrong = changed(values, path, value)
    assert json.dumps(wrong) != json.dumps(values)
    try:
        put(commit, wrong)
        cure = () if path == ("dataset_uuid",) else ("delete it",)
        for read in (open_dataset, require_undamaged):
            require_refusal(read, shared, str(commit), *cure, "; ")
        put(commit, values)
        require_undamaged(shared)
    finally:
        commit.write_bytes(good)


def rewrite(root: Path, change_table=lambda table: table, change_values=lambda values: values) -> Path:
    """Write a snapshot again with other content and checksums to match."""
    snapshot = root / "snapshots" / "0.parquet"
    table = pq.read_table(snapshot)
    values = decode_record(pq.read_metadata(snapshot).metadata[METADATA_KEY])
    table = change_table(table).replace_schema_metadata({METADATA_KEY: encode_record(change_values(values))})
    pq.write_table(table, snapshot, compression="zstd", write_page_checksum=True, store_schema=True)
    return snapshot


def with_number(name: str, row: int, value: int | None):
    def change(table: pa.Table) -> pa.Table:
        numbers = table.column(name).to_pylist()
        numbers[row] = value
        array = pa.array(numbers, table.schema.field(name).type)
        return table.set_column(table.schema.get_field_index(name), name, array)

    return change


SNAPSHOTS = {
    "shard_that_is_not_listed": {"change_table": with_number("shard", 1, 2)},
    "negative_shard": {"change_table": with_number("shard", 1, -1)},
    "units_out_of_order": {"change_table": with_number("unit", 0, 1)},
    "unit_beyond_32_bits": {"change_table": with_number("unit", 3, 2**32)},
    "negative_row": {"change_table": with_number("first_row", 0, -1)},
    "row_beyond_32_bits": {"change_table": with_number("first_row", 0, 2**32)},
    "row_outside_of_the_shard": {"change_table": with_number("length", 3, 9)},
    "no_steps": {"change_table": with_number("length", 0, 0)},
    "null": {"change_table": with_number("length", 0, None)},
    "task_beyond_16_bits": {"change_table": with_number("task", 2, 2**15)},
    "episode_missing": {"change_table": lambda table: table.slice(1)},
    "column_missing": {"change_table": lambda table: table.drop_columns(["seed"])},
    "shards_missing": {"change_values": lambda v: {**v, "shards": v["shards"][:1]}},
    "shard_outside": {"change_values": lambda v: changed(v, ("shards", 0, "name"), "../outside.arrow")},
    "column_outside": {"change_values": lambda v: changed(v, ("shards", 0, "offsets", "reward"), 2**40)},
    "too_many_rows": {"change_values": lambda v: changed(v, ("shards", 0, "num_rows"), 2**31)},
    "statistics_missing": {"change_values": lambda v: changed(v, (*REWARD,), ABSENT)},
    "statistics_of_another_width": {"change_values": lambda v: changed(v, GOAL, v["statistics"]["reward"])},
}


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_snapshot(dataset_root, name):
    before = open_dataset(dataset_root).content_hash()
    write_snapshot(open_dataset(dataset_root))
    rewrite(dataset_root)
    assert open_dataset(dataset_root, snapshot=0).content_hash() == before
    snapshot = rewrite(dataset_root, **SNAPSHOTS[name])
    for read in (open_dataset, lambda root: open_dataset(root, snapshot=0), require_undamaged):
        require_refusal(read, dataset_root, str(snapshot), "delete it, and the dataset is read from its commits")
    snapshot.unlink()
    assert open_dataset(dataset_root).content_hash() == before
