"""Whatever lies on the disk in place of a dataset: the answer is a `DataError` of one line that names the file."""

import json
import shutil
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_up_episodes import (
    commit_of,
    edit_record,
    edit_shard_record,
    make_episode,
    make_manifest,
    overwrite,
    require_undamaged,
    shard_of,
    write_dataset,
)

from diffplan.data.format.checksums import compute_checksums
from diffplan.data.format.dataset import open_dataset, write_snapshot
from diffplan.data.format.record import decode_record, encode_record
from diffplan.data.format.writer import create_dataset, write_unit
from diffplan.errors import DataError


def replace_shard(root: Path, unit: int, content: bytes) -> Path:
    """Replace a shard and adjust size and checksums in its commit, so that only what it holds is wrong."""
    overwrite(shard_of(root, unit), content)
    edit_shard_record(root, unit, num_bytes=len(content), checksums=compute_checksums(content))
    return shard_of(root, unit)


def read_everything(root: Path) -> None:
    dataset = open_dataset(root)
    assert dataset.statistics
    for shard in dataset.shards:
        for column in dataset.manifest.columns:
            dataset.column(shard, column.name)
    require_undamaged(root)


def assert_refused(root: Path, named: Path, *words: str, read=read_everything) -> None:
    with pytest.raises(DataError) as caught:
        read(root)
    message = str(caught.value)
    assert str(named) in message
    assert "\n" not in message
    for word in words:
        assert word in message


def to_file(batches: list[pa.RecordBatch], schema: pa.Schema) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def read_table(path: Path) -> pa.Table:
    return pa.ipc.open_file(pa.py_buffer(path.read_bytes())).read_all()


def test_missing_dataset(tmp_path):
    assert_refused(tmp_path / "nowhere", tmp_path / "nowhere", "no _dataset.json", "diffplan collect")
    (tmp_path / "empty").mkdir()
    assert_refused(tmp_path / "empty", tmp_path / "empty", "no _dataset.json")


def test_dataset_without_episodes(tmp_path):
    create_dataset(tmp_path, make_manifest())
    assert_refused(tmp_path, tmp_path, "no episodes yet", "--resume")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b'"text"', b"\xff\xfe", b"null", b"{}"])
def test_damaged_manifest(dataset_root, content):
    manifest = dataset_root / "_dataset.json"
    manifest.write_bytes(content)
    assert_refused(dataset_root, manifest, "damaged")


def test_truncated_manifest(dataset_root):
    manifest = dataset_root / "_dataset.json"
    content = manifest.read_bytes()
    for size in range(0, len(content) - 2, 17):
        manifest.write_bytes(content[:size])
        assert_refused(dataset_root, manifest)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"format_version": 2}, "version 2"),
        ({"format": "other"}, "got other"),
        ({"features": ["compression"]}, "compression"),
        ({"observation_dimension": 3}, "observation_dimension"),
        ({"columns": None}, "damaged"),
        ({"columns": [{"name": "observation"}]}, "shape"),
        ({"columns": [{"name": "observation", "shape": [3], "width": 4}]}, "width"),
        ({"columns": []}, "must begin with observation, action and reward"),
        ({"columns": [{"name": n, "shape": []} for n in ("observation", "action", "reward", "t")]}, "same name"),
        ({"columns": [{"name": n, "shape": []} for n in ("observation", "action", "reward", "reward")]}, "same name"),
        (
            {"columns": [{"name": n, "shape": [], "dtype": "float16"} for n in ("observation", "action", "reward")]},
            "type 'float16'",
        ),
        ({"tasks": [{"name": "a"}]}, "damaged"),
    ],
)
def test_manifest_that_this_reader_does_not_know(dataset_root, change, word):
    edit_record(dataset_root / "_dataset.json", **change)
    assert_refused(dataset_root, dataset_root / "_dataset.json", word)


def test_manifest_that_lacks_a_field(dataset_root):
    manifest = dataset_root / "_dataset.json"
    values = decode_record(manifest.read_bytes())
    for name in set(values) - {"collection", "source", "spaces", "env_spec"}:  # which not every dataset has
        manifest.write_bytes(encode_record({k: v for k, v in values.items() if k != name}))
        assert_refused(dataset_root, manifest)


def test_missing_shard(dataset_root):
    shard = shard_of(dataset_root, 1)
    shard.unlink()
    assert_refused(dataset_root, shard, "missing", "--resume", read=open_dataset)


@pytest.mark.parametrize("num_bytes", [-1, -100, 1, None])
def test_shard_of_another_size(dataset_root, num_bytes):
    shard = shard_of(dataset_root, 0)
    content = shard.read_bytes()
    overwrite(shard, b"" if num_bytes is None else content[:num_bytes] if num_bytes < 0 else content + b"\0")
    assert_refused(dataset_root, shard, "truncated or was changed", read=open_dataset)


def test_shard_that_changes_size_after_the_dataset_was_opened(dataset_root):
    dataset = open_dataset(dataset_root)
    mapped, untouched = (shard_of(dataset_root, unit) for unit in (0, 1))
    dataset.column(dataset.shards[0], "reward")
    for shard in (mapped, untouched):
        overwrite(shard, shard.read_bytes()[:-8])
    with pytest.raises(DataError, match=rf"{mapped}: expected {dataset.shards[0].num_bytes} bytes, got .* changed"):
        dataset.check_sizes()
    with pytest.raises(DataError, match=rf"{untouched}: .*damaged"):
        dataset.column(dataset.shards[1], "reward")


def test_flipped_bit_in_the_data_is_found_by_verify(dataset_root):
    record = open_dataset(dataset_root).shards[1]
    shard = dataset_root / record.name
    content = bytearray(shard.read_bytes())
    content[record.offsets["reward"] + 3] ^= 0x10
    overwrite(shard, content)
    open_dataset(dataset_root)  # which does not read all bytes
    assert_refused(dataset_root, shard, "expected checksum", "--drop_damaged", "--resume", read=require_undamaged)


@pytest.mark.parametrize("stride", [31, pytest.param(3, marks=pytest.mark.slow)])
def test_flipped_bit_anywhere_is_found_by_verify_and_never_breaks_the_reader(tmp_path, stride):
    write_dataset(tmp_path, [[3]])
    shard = shard_of(tmp_path, 0)
    good = shard.read_bytes()
    generator = np.random.default_rng(0)
    for position in range(0, len(good), stride):
        content = bytearray(good)
        content[position] ^= 1 << int(generator.integers(8))
        overwrite(shard, content)
        open_dataset(tmp_path)
        with pytest.raises(DataError, match=shard.name):
            require_undamaged(tmp_path)


def test_zeroed_page_is_found_by_verify(dataset_root):
    shard = shard_of(dataset_root, 0)
    content = bytearray(shard.read_bytes())
    content[512:1024] = bytes(512)
    overwrite(shard, content)
    assert_refused(dataset_root, shard)


def test_parquet_file_in_place_of_a_shard(dataset_root, tmp_path):
    pq.write_table(read_table(shard_of(dataset_root, 0)), tmp_path / "shard.parquet")
    shard = replace_shard(dataset_root, 0, (tmp_path / "shard.parquet").read_bytes())
    assert_refused(dataset_root, shard, "expected an Arrow IPC file")


def test_arrow_stream_in_place_of_a_shard(dataset_root):
    table = read_table(shard_of(dataset_root, 0))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    shard = replace_shard(dataset_root, 0, sink.getvalue().to_pybytes())
    assert_refused(dataset_root, shard, "expected an Arrow IPC file")


def test_shard_of_two_record_batches_or_none(dataset_root):
    (batch,) = read_table(shard_of(dataset_root, 0)).to_batches()
    content = to_file([batch.slice(0, 5), batch.slice(5)], batch.schema)
    assert_refused(dataset_root, replace_shard(dataset_root, 0, content), "1 record batch of 12 rows, got 2 with 5")
    replace_shard(dataset_root, 0, to_file([], batch.schema))
    assert_refused(dataset_root, commit_of(dataset_root, 0), "would lie outside of shards/")


def test_shard_with_too_few_rows(dataset_root):
    (batch,) = read_table(shard_of(dataset_root, 0)).to_batches()
    shard = replace_shard(dataset_root, 0, to_file([batch.slice(0, 9)], batch.schema))
    assert_refused(dataset_root, shard, "12 rows")


def test_shard_of_other_columns_or_types(dataset_root):
    (batch,) = read_table(shard_of(dataset_root, 0)).to_batches()
    names = batch.schema.names
    for changed in (
        batch.select([name for name in names if name != "goal"]),
        batch.select(list(reversed(names))),
        batch.set_column(4, "reward", batch.column("reward").cast(pa.float64())),
        batch.set_column(2, "observation", batch.column("observation").cast(pa.list_(pa.float32()))),
        batch.rename_columns([name.upper() for name in names]),
    ):
        shard = replace_shard(dataset_root, 0, to_file([changed], changed.schema))
        assert_refused(dataset_root, shard, "expected the columns")


def test_compressed_shard(dataset_root):
    # Its columns cannot be mapped, whatever the commit says.
    table = read_table(shard_of(dataset_root, 0))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    shard = replace_shard(dataset_root, 0, sink.getvalue().to_pybytes())
    assert_refused(dataset_root, shard)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b"{}", b'{"unit": 0}'])
def test_damaged_commit(dataset_root, content):
    commit_of(dataset_root, 1).write_bytes(content)
    assert_refused(dataset_root, commit_of(dataset_root, 1), "expected a commit record", "--resume")


def test_truncated_commit(dataset_root):
    commit = commit_of(dataset_root, 1)
    content = commit.read_bytes()
    for size in range(0, len(content), 499):
        commit.write_bytes(content[:size])
        assert_refused(dataset_root, commit)


@pytest.mark.parametrize("shard", ["../outside.arrow", "shards/../../outside.arrow", "/etc/passwd"])
def test_commit_that_points_outside(dataset_root, shard):
    shutil.copy(shard_of(dataset_root, 0), dataset_root.parent / "outside.arrow")
    edit_shard_record(dataset_root, 0, name=shard)
    assert_refused(dataset_root, commit_of(dataset_root, 0), "inside the dataset", shard)


def test_renamed_commit(dataset_root):
    commit_of(dataset_root, 1).rename(commit_of(dataset_root, 5))
    assert_refused(dataset_root, commit_of(dataset_root, 5), "renamed")


def test_commit_of_another_dataset(dataset_root, tmp_path):
    write_dataset(tmp_path / "other", [[5], [6], [7]])
    shutil.copy(commit_of(tmp_path / "other", 2), commit_of(dataset_root, 2))
    shutil.copy(shard_of(tmp_path / "other", 2), dataset_root / "shards")
    assert_refused(dataset_root, commit_of(dataset_root, 2), "misplaced")


def test_commit_whose_buffers_lie_elsewhere(dataset_root):
    offsets = decode_record(commit_of(dataset_root, 0).read_bytes())["shard"]["offsets"]
    edit_shard_record(dataset_root, 0, offsets={**offsets, "reward": offsets["reward"] + 64})
    assert_refused(dataset_root, shard_of(dataset_root, 0), "do not lie where the commit says")


def test_commit_whose_episodes_do_not_fill_the_shard(dataset_root):
    commit = commit_of(dataset_root, 0)
    edit_record(commit, episodes=decode_record(commit.read_bytes())["episodes"][:1])
    assert_refused(dataset_root, commit, "5 rows, its shard 12")


def test_episodes_that_overlap_in_the_shard(dataset_root):
    commit = commit_of(dataset_root, 0)
    episodes = decode_record(commit.read_bytes())["episodes"]
    for first_row in (0, 7, -5, 10**9):  # 5 would be right
        episodes[1]["first_row"] = first_row
        edit_record(commit, episodes=episodes)
        assert_refused(dataset_root, commit, "does not begin where the one before it ends")


def test_episode_in_two_units(tmp_path):
    manifest = create_dataset(tmp_path, make_manifest())
    write_unit(tmp_path, manifest, 0, [make_episode(0, 5), make_episode(1, 4)])
    write_unit(tmp_path, manifest, 1, [make_episode(1, 4)])
    assert_refused(tmp_path, tmp_path, "episode 1 occurs more than once")


def test_missing_or_damaged_snapshot(dataset_root):
    write_snapshot(open_dataset(dataset_root))
    with pytest.raises(DataError, match=r"expected one of the snapshots \[0\], got 3"):
        open_dataset(dataset_root, snapshot=3)
    snapshot = dataset_root / "snapshots" / "0.parquet"
    for content in (b"", b"PAR1", snapshot.read_bytes()[:-20]):
        snapshot.write_bytes(content)
        assert_refused(dataset_root, snapshot, "delete it", read=lambda root: open_dataset(root, snapshot=0))
        assert_refused(dataset_root, snapshot, "delete it", read=open_dataset)
    snapshot.unlink()  # as the message says
    read_everything(dataset_root)


def test_snapshot_whose_commit_is_gone_still_has_its_unit(dataset_root):
    before = open_dataset(dataset_root).content_hash()
    write_snapshot(open_dataset(dataset_root))
    commit_of(dataset_root, 1).unlink()
    for number in (0, None):
        assert open_dataset(dataset_root, snapshot=number).content_hash() == before


def test_snapshot_whose_shard_is_gone(dataset_root):
    write_snapshot(open_dataset(dataset_root))
    shard = shard_of(dataset_root, 1)
    shard.unlink()
    for number in (0, None):
        assert_refused(
            dataset_root,
            shard,
            "unit 1 is missing",
            "--resume",
            read=lambda root, number=number: open_dataset(root, snapshot=number),
        )
    commit_of(dataset_root, 1).unlink()
    assert_refused(dataset_root, shard, "unit 1 is missing", "--resume", read=open_dataset)


FIELDS = ["unit", "dataset_uuid", "shard", "episodes", "statistics"]
SHARD_FIELDS = ["name", "num_bytes", "num_rows", "offsets", "checksums"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(FIELDS + SHARD_FIELDS),
    value=st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**40), 2**40)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
        max_leaves=6,
    ),
)
def test_any_value_of_any_field_of_a_commit_is_refused(dataset_root, name, value):
    commit = commit_of(dataset_root, 0)
    good = commit.read_bytes()
    original = decode_record(good)
    try:
        if value == (original["shard"] if name in SHARD_FIELDS else original)[name]:
            return
        if name in SHARD_FIELDS:
            edit_shard_record(dataset_root, 0, **{name: value})
        else:
            edit_record(commit, **{name: value})
        with pytest.raises(DataError) as caught:
            read_everything(dataset_root)
        assert str(dataset_root) in str(caught.value)
    finally:
        commit.write_bytes(good)


@pytest.mark.parametrize("stride", [1999, pytest.param(211, marks=pytest.mark.slow)])
def test_every_flipped_bit_of_a_record_is_found(dataset_root, stride):
    for path in (dataset_root / "_dataset.json", commit_of(dataset_root, 1)):
        good = path.read_bytes()
        for bit in range(0, 8 * len(good), stride):
            damaged = bytearray(good)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            assert_refused(dataset_root, path, read=open_dataset)
        path.write_bytes(good)
    read_everything(dataset_root)


def test_a_record_is_plain_json_with_its_checksum_first():
    content = encode_record({"unit": 7, "name": "größer"})
    assert json.loads(content)["unit"] == 7
    assert content.startswith(b'{"checksum": "')
    assert f"{zlib.crc32(content[25:]):08x}".encode() == content[14:22]
    assert decode_record(content) == {"unit": 7, "name": "größer"}


@pytest.mark.parametrize("name", ["observations", "actions", "rewards", "final"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
def test_values_that_are_not_finite_are_refused_when_written(tmp_path, name, value):
    manifest, episode = make_manifest(), make_episode(0, 4)
    arrays = {n: getattr(episode, n).astype(np.float64) for n in ("observations", "actions", "rewards")}
    arrays["observations" if name == "final" else name][-1 if name == "final" else 1] = value
    create_dataset(tmp_path, manifest)
    with pytest.raises(DataError, match="finite"), np.errstate(over="ignore"):
        write_unit(tmp_path, manifest, 0, [replace(episode, **arrays)])
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["_dataset.json"]
