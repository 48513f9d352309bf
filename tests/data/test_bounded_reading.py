"""Data that claim to be larger than they are: refused before memory is taken."""

import contextlib
import struct
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from damaged_datasets import replace_shard, to_file
from made_up_episodes import shard_of, write_dataset

from diffplan.data.format import snapshot as snapshot_module
from diffplan.data.format.arrow_file import needs_inflating
from diffplan.data.format.commit_checks import check_places
from diffplan.data.format.dataset import open_dataset, read_manifest, write_snapshot
from diffplan.data.format.episodes import EpisodeTable
from diffplan.data.format.snapshot import DatasetState, read_state, write_state
from diffplan.errors import DataError
from diffplan.storage.opening import open_store

NUM_ROWS = 2_000_000


def make_batch(manifest, num_rows):
    schema = manifest.arrow_schema
    arrays = []
    for field in schema:
        size = field.type.list_size if isinstance(field.type, pa.FixedSizeListType) else 1
        inner = field.type.value_type if isinstance(field.type, pa.FixedSizeListType) else field.type
        if pa.types.is_boolean(inner):
            values = pa.array(np.zeros(num_rows, bool))
        else:
            values = pa.array(np.zeros(num_rows * size, inner.to_pandas_dtype()))
        is_list = isinstance(field.type, pa.FixedSizeListType)
        arrays.append(pa.FixedSizeListArray.from_arrays(values, size) if is_list else values)
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_a_compressed_shard_is_not_inflated(tmp_path, monkeypatch, codec):
    write_dataset(tmp_path, [[5, 7]])
    batch = make_batch(read_manifest(open_store(tmp_path)), NUM_ROWS)
    shard = replace_shard(tmp_path, to_file([batch], batch.schema, compression=codec))
    assert shard.stat().st_size < batch.nbytes / 100
    dataset = open_dataset(tmp_path)
    monkeypatch.setattr(pa.ipc.RecordBatchFileReader, "get_batch", None, raising=False)
    with pytest.raises(DataError, match="expected an uncompressed shard, got one that is compressed") as caught:
        dataset.column(dataset.shards[0], "observation")
    assert str(shard) in str(caught.value)


def test_dictionaries_count_as_compressed():
    batch = pa.record_batch({"a": pa.array(["x", "y"]).dictionary_encode()})
    assert needs_inflating(memoryview(to_file([batch], batch.schema)))


@pytest.mark.parametrize("num_batches", [0, 1, 3])
def test_plain_files_need_no_inflating(num_batches):
    batch = pa.record_batch({"a": [1, 2], "b": ["x", None]})
    assert not needs_inflating(memoryview(to_file([batch] * num_batches, batch.schema)))
    compressed = to_file([batch] * num_batches, batch.schema, compression="zstd")
    assert needs_inflating(memoryview(compressed)) == (num_batches > 0)


def test_a_damaged_footer_is_a_value_error_at_most():
    batch = pa.record_batch({"a": [1, 2], "b": ["x", None]})
    content = to_file([batch] * 2, batch.schema)
    generator = np.random.default_rng(0)
    since = time.monotonic()
    for _ in range(2000):
        changed = bytearray(content)
        (footer_bytes,) = struct.unpack_from("<i", content, len(content) - 10)
        for place in generator.integers(len(content) - 10 - footer_bytes, len(content), 3):
            changed[place] = generator.integers(256)
        with contextlib.suppress(ValueError):
            needs_inflating(memoryview(changed))
    assert time.monotonic() - since < 10


def test_a_shard_of_more_rows_than_bytes_is_refused(tmp_path):
    write_dataset(tmp_path, [[5, 7]])
    manifest, shard = read_manifest(open_store(tmp_path)), open_dataset(tmp_path).shards[0]
    check_places(shard, manifest)
    # Every column would lie inside the file, but all on top of each other.
    forged = replace(shard, num_rows=shard.num_bytes // 17, offsets=dict.fromkeys(shard.offsets, 0))
    with pytest.raises(ValueError, match=rf"of {shard.num_bytes} bytes cannot hold {forged.num_rows} rows"):
        check_places(forged, manifest)


def test_a_snapshot_of_more_episodes_than_the_shards_can_hold_is_refused(tmp_path, monkeypatch):
    """Equal values take no room in Parquet: a small file could claim any number of episodes."""
    write_dataset(tmp_path, [[5, 7]])
    store = open_store(tmp_path)
    manifest = read_manifest(store)
    state = read_state(store, manifest)
    table = state.episodes.to_arrow().take(np.zeros(50_000, np.int64))
    forged = DatasetState(state.shards, EpisodeTable.from_arrow(table), state.statistics)
    assert write_state(store, manifest, forged) == 0
    assert (tmp_path / "snapshots" / "0.parquet").stat().st_size < 100_000
    read = []
    monkeypatch.setattr(snapshot_module, "MAX_UNCHECKED_EPISODES", 1000)
    monkeypatch.setattr(snapshot_module, "_read_table", lambda *arguments: read.append(arguments))
    with pytest.raises(DataError, match=r"its 50000 episodes are more than \d+ bytes of shards can hold") as caught:
        open_dataset(tmp_path)
    assert "\n" not in str(caught.value)
    assert not read


def test_snapshots_of_many_episodes_are_read(tmp_path, monkeypatch):
    write_dataset(tmp_path, [[5, 7], [3, 3]])
    monkeypatch.setattr(snapshot_module, "MAX_UNCHECKED_EPISODES", 1)
    write_snapshot(open_dataset(tmp_path))
    assert len(open_dataset(tmp_path).episodes) == 4
    shard_of(tmp_path, 0).unlink()
    with pytest.raises(DataError, match="is missing"):
        open_dataset(tmp_path)
