"""Every way in which the file of a shard can be wrong: found at its stage, named, curable, and never a crash."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from damaged_datasets import (
    LENGTHS,
    STAGES,
    Case,
    prepare,
    read_batch,
    read_in_process,
    replace_shard,
    to_big_endian,
    to_file,
)
from made_up_episodes import commit_of, overwrite, shard_of, write_dataset

from diffplan.data.format.dataset import open_dataset
from diffplan.data.format.shard_reader import ShardReader
from diffplan.errors import DataError

NUM_ROWS = sum(LENGTHS[0])


def truncated(root: Path) -> Path:
    shard = shard_of(root, 0)
    overwrite(shard, shard.read_bytes()[:-100])
    return shard


def empty(root: Path) -> Path:
    overwrite(shard_of(root, 0), b"")
    return shard_of(root, 0)


def longer(root: Path) -> Path:
    shard = shard_of(root, 0)
    overwrite(shard, shard.read_bytes() + bytes(64))
    return shard


def with_trailing_bytes(root: Path) -> Path:
    return replace_shard(root, shard_of(root, 0).read_bytes() + bytes(64))


def unclosed(root: Path) -> Path:
    batch = read_batch(shard_of(root, 0))
    sink = pa.BufferOutputStream()
    writer = pa.ipc.new_file(sink, batch.schema)
    writer.write_batch(batch)
    return replace_shard(root, sink.getvalue().to_pybytes())  # the footer comes with close()


def of_no_bytes(root: Path) -> Path:
    replace_shard(root, b"")
    return commit_of(root, 0)  # which cannot be true of a file of this size


def of_zeros(root: Path) -> Path:
    return replace_shard(root, bytes(shard_of(root, 0).stat().st_size))


def change_rows(root: Path, num_bytes: int, change: int | None) -> Path:
    """Flip a bit of the observations, or set bytes of them to 0, behind the back of the commit."""
    record = open_dataset(root).shards[0]
    content = bytearray(shard_of(root, 0).read_bytes())
    start = record.offsets["observation"]
    if change is None:
        content[start : start + num_bytes] = bytes(num_bytes)
    else:
        content[start] ^= change
    overwrite(shard_of(root, 0), content)
    return shard_of(root, 0)


def of_parquet(root: Path) -> Path:
    path = root.parent / "shard.parquet"
    pq.write_table(pa.Table.from_batches([read_batch(shard_of(root, 0))]), path)
    return replace_shard(root, path.read_bytes())


def of_a_stream(root: Path) -> Path:
    batch = read_batch(shard_of(root, 0))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return replace_shard(root, sink.getvalue().to_pybytes())


def with_wrong_magic(root: Path) -> Path:
    return replace_shard(root, b"FEATHER1"[:6] + shard_of(root, 0).read_bytes()[6:-6] + b"FEATHE")


def with_a_name_that_is_not_text(root: Path) -> Path:
    before, name, after = shard_of(root, 0).read_bytes().rpartition(b"observation")
    return replace_shard(root, before + b"\xff" + name[1:] + after)


def with_a_damaged_footer(root: Path) -> Path:
    content = bytearray(shard_of(root, 0).read_bytes())
    content[-200:-10] = b"\xff" * 190
    return replace_shard(root, bytes(content))


def of_two_batches(root: Path) -> Path:
    batch = read_batch(shard_of(root, 0))
    return replace_shard(root, to_file([batch.slice(0, 5), batch.slice(5)], batch.schema))


def of_no_batch(root: Path) -> Path:
    replace_shard(root, to_file([], read_batch(shard_of(root, 0)).schema))
    return commit_of(root, 0)


def of_fewer_rows(root: Path) -> Path:
    batch = read_batch(shard_of(root, 0))
    return replace_shard(root, to_file([batch.slice(0, NUM_ROWS - 3)], batch.schema))


def compressed(root: Path) -> Path:
    batch = read_batch(shard_of(root, 0))
    return replace_shard(root, to_file([batch], batch.schema, compression="zstd"))


def of_big_endian(root: Path) -> Path:
    return replace_shard(root, to_big_endian(shard_of(root, 0).read_bytes()))


def missing(root: Path) -> Path:
    shard = shard_of(root, 0)
    shard.unlink()
    return shard


def swapped(root: Path) -> Path:
    first, second = shard_of(root, 0), shard_of(root, 1)
    contents = second.read_bytes(), first.read_bytes()
    overwrite(first, contents[0])
    overwrite(second, contents[1])
    return first


def loop(root: Path) -> Path:
    shard = shard_of(root, 0)
    shard.unlink()
    shard.symlink_to(shard.name)
    return shard


def directory(root: Path) -> Path:
    shard = shard_of(root, 0)
    shard.unlink()
    shard.mkdir()
    return shard


def rewrite(change, *, keep_schema: bool = False):
    """A damage that changes the rows of the first shard and makes the commit agree with the new file."""

    def damage(root: Path) -> Path:
        batch = read_batch(shard_of(root, 0))
        changed = change(batch)
        schema = batch.schema if keep_schema else changed.schema.with_metadata(batch.schema.metadata)
        return replace_shard(root, to_file([changed.replace_schema_metadata(batch.schema.metadata)], schema))

    return damage


def with_column(name: str, make_array):
    """Put another array in the place of a column, in a field that allows what the format does not."""

    def change(batch: pa.RecordBatch) -> pa.RecordBatch:
        at = batch.schema.get_field_index(name)
        array = make_array(batch.column(name))
        nullable = array.null_count > 0
        field = pa.field(name, array.type, nullable=nullable)
        return batch.set_column(at, field, array)

    return change


def as_lists(array: pa.Array, value_type: pa.DataType, size: int = -1) -> pa.Array:
    rows = [row[:size] if size > 0 else row for row in array.to_pylist()]
    return pa.array(rows, pa.list_(value_type, size))


def without_some(array: pa.Array) -> pa.Array:
    return pa.array([None, *array.to_pylist()[1:]], array.type)


def null_entries(array: pa.Array) -> pa.Array:
    rows = array.to_pylist()
    rows[2][1] = None
    return pa.array(rows, array.type)


def of_nulls(name: str, make_array):
    """Nulls in a column whose field says that there are none, as a faulty writer would leave them."""

    def damage(root: Path) -> Path:
        batch = read_batch(shard_of(root, 0))
        arrays = [make_array(a) if n == name else a for n, a in zip(batch.schema.names, batch.columns, strict=True)]
        return replace_shard(root, to_file([pa.RecordBatch.from_arrays(arrays, schema=batch.schema)], batch.schema))

    return damage


def with_metadata(**changes: str):
    def damage(root: Path) -> Path:
        batch = read_batch(shard_of(root, 0))
        metadata = {**batch.schema.metadata, **{f"diffplan.{k}".encode(): v.encode() for k, v in changes.items()}}
        batch = batch.replace_schema_metadata(metadata)
        return replace_shard(root, to_file([batch], batch.schema))

    return damage


def with_values(name: str, change):
    """Other values in a column that is checked against the index of episodes, with everything else right."""

    def make_array(array: pa.Array) -> pa.Array:
        values = array.to_numpy(zero_copy_only=False).copy()
        return pa.array(change(values), array.type)

    return rewrite(with_column(name, make_array), keep_schema=True)


def set_row(row: int, value: object):
    def change(values: np.ndarray) -> np.ndarray:
        values[row] = value
        return values

    return change


COLUMNS = "expected the columns"
NO_ARROW = "expected an Arrow IPC file"
CASES = [
    Case("truncated", truncated, "open", "truncated or was changed"),
    Case("zero_bytes", empty, "open", "got 0"),
    Case("trailing_bytes", longer, "open", "truncated or was changed"),
    Case("missing", missing, "open", "missing", cure="--resume"),
    Case("symlink_loop", loop, "open", "missing", cure="--resume"),
    Case("directory", directory, "open", "missing", cure="--resume"),
    Case("swapped", swapped, "touch", "expected a shard of the units 00000000, got one of 00000001"),
    Case("trailing_bytes_that_were_committed", with_trailing_bytes, "touch", NO_ARROW),
    Case("no_bytes_that_were_committed", of_no_bytes, "open", "outside", cure="--resume"),
    Case("only_zeros", of_zeros, "touch", NO_ARROW),
    Case("unclosed", unclosed, "touch", NO_ARROW),
    Case("parquet_renamed", of_parquet, "touch", NO_ARROW),
    Case("stream_renamed", of_a_stream, "touch", NO_ARROW),
    Case("wrong_magic", with_wrong_magic, "touch", NO_ARROW),
    Case("damaged_footer", with_a_damaged_footer, "touch", NO_ARROW),
    Case("column_name_not_utf8", with_a_name_that_is_not_text, "touch", "expected an Arrow IPC file"),
    Case("two_batches", of_two_batches, "touch", f"expected 1 record batch of {NUM_ROWS} rows, got 2 with 5"),
    Case("no_batch", of_no_batch, "open", "outside", cure="--resume"),
    Case("fewer_rows", of_fewer_rows, "touch", f"got 1 with {NUM_ROWS - 3}"),
    Case("compressed", compressed, "touch", "compressed"),
    Case("big_endian", of_big_endian, "touch", "byte order"),
    Case("column_missing", rewrite(lambda b: b.drop_columns(["goal"])), "touch", COLUMNS),
    Case("column_extra", rewrite(lambda b: b.append_column("x", b.column("reward"))), "touch", COLUMNS),
    Case("columns_reordered", rewrite(lambda b: b.select(b.schema.names[::-1])), "touch", COLUMNS),
    Case(
        "other_width",
        rewrite(with_column("observation", lambda a: as_lists(a, pa.float32(), 2))),
        "touch",
        COLUMNS,
    ),
    Case("float64", rewrite(with_column("reward", lambda a: a.cast(pa.float64()))), "touch", COLUMNS),
    Case(
        "float64_list",
        rewrite(with_column("observation", lambda a: as_lists(a, pa.float64(), 3))),
        "touch",
        COLUMNS,
    ),
    Case("float16", rewrite(with_column("reward", lambda a: a.cast(pa.float16()))), "touch", COLUMNS),
    Case(
        "list_of_any_length", rewrite(with_column("observation", lambda a: as_lists(a, pa.float32()))), "touch", COLUMNS
    ),
    Case("nullable_column", rewrite(with_column("reward", without_some)), "touch", COLUMNS),
    Case("nulls", of_nulls("reward", without_some), "touch", "expected a value in every row of column 'reward', got 1"),
    Case("null_entries", of_nulls("observation", null_entries), "touch", "column 'observation', got 1 nulls"),
    Case("other_dataset", with_metadata(dataset_uuid="another"), "touch", "got one of another"),
    Case("other_unit", with_metadata(units="00000007"), "touch", "got one of 00000007"),
    Case("bit_flip", lambda root: change_rows(root, 1, 0x10), "verified_read", "expected checksum"),
    Case("zeroed_page", lambda root: change_rows(root, 100, None), "verified_read", "expected checksum"),
    Case("t_from_1", with_values("t", lambda t: t + 1), "find_damage", "expected t 0 in row 0"),
    Case("t_with_a_gap", with_values("t", set_row(3, 4)), "find_damage", "expected t 3 in row 3"),
    Case(
        "episodes_interleaved",
        with_values("episode_index", lambda e: np.arange(len(e)) % 2),
        "find_damage",
        "expected episode_index 0 in row 1",
    ),
    Case(
        "termination_in_mid_episode",
        with_values("termination", set_row(2, True)),
        "find_damage",
        "expected termination False in row 2",
    ),
    Case(
        "truncation_in_mid_episode",
        with_values("truncation", set_row(2, True)),
        "find_damage",
        "expected truncation False in row 2",
    ),
    Case(
        "end_flag_lost",
        with_values("truncation", set_row(NUM_ROWS - 1, False)),
        "find_damage",
        f"expected truncation True in row {NUM_ROWS - 1}",
    ),
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> dict[str, tuple[Path, Path]]:
    return prepare(tmp_path_factory.mktemp("shards"), CASES)


@pytest.fixture(scope="module")
def outcomes(prepared) -> dict[Path, dict]:
    return read_in_process([root for root, _ in prepared.values()])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_shard(case, prepared, outcomes):
    root, named = prepared[case.name]
    found = outcomes[root]
    assert "crash" not in found, found
    for stage in STAGES[: STAGES.index(case.stage)]:
        assert found[stage] is None
    for stage in {case.stage, "find_damage"}:
        kind, message = found[stage]
        assert kind == "DataError", message
        assert str(named) in message
        assert "\n" not in message
    _, message = found[case.stage]
    assert case.words in message
    assert case.cure in message
    for command in ("info", "verify"):
        done = found[command]
        fails = done["code"] == 2
        assert fails or (done["code"] == 0 and command == "info" and case.stage != "open"), done
        lines = done["err"].splitlines()  # the last is the error, before it there is progress
        assert [line.startswith("error: ") for line in lines[-1:]] == [True] * fails, done
        assert done["err"].count("error: ") == fails, done
        assert "Traceback" not in done["err"], done
    by_hand = case.name == "directory"  # which is not deleted with all that may be in it
    assert found["drop"]["code"] == (2 if by_hand else 0), found["drop"]
    assert ("delete it by hand" in found["drop"]["err"]) == by_hand
    assert found["verify_again"]["code"] == 0, "the cure cures"
    assert found["open_again"] is None


FLIPPED_BITS = """
import sys
import pyarrow as pa
from diffplan.data.format.dataset import open_dataset
from diffplan.data.format.structure import check_structure
from diffplan.errors import DataError
dataset = open_dataset(sys.argv[1])
shard = dataset.shards[0]
good = dataset.store.read(shard.name)
refused = 0
for position in range(len(good)):
    content = bytearray(good)
    content[position] ^= 1 << position * 5 % 8
    try:
        check_structure("shard", pa.py_buffer(bytes(content)), shard, dataset.manifest).to_pylist()
    except DataError:
        refused += 1
print(refused, len(good))
"""


def test_no_flipped_bit_of_a_shard_ends_the_reader(tmp_path):
    write_dataset(tmp_path, LENGTHS[:1])
    done = subprocess.run(
        [sys.executable, "-c", FLIPPED_BITS, tmp_path], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    refused, num_bytes = map(int, done.stdout.split())
    assert num_bytes / 10 < refused < num_bytes  # numbers and gaps have no structure


def test_shard_that_shrinks_or_goes_while_it_is_mapped(tmp_path):
    write_dataset(tmp_path, LENGTHS)
    dataset = open_dataset(tmp_path)
    before = [np.array(dataset.column(shard, "reward")) for shard in dataset.shards]
    shard_of(tmp_path, 0).unlink()  # what is mapped stays
    dataset.check_sizes()
    np.testing.assert_array_equal(dataset.column(dataset.shards[0], "reward"), before[0])
    os.truncate(shard_of(tmp_path, 1), 100)
    with pytest.raises(DataError, match=rf"{shard_of(tmp_path, 1)}: expected \d+ bytes, got 100; .*--drop_damaged"):
        dataset.check_sizes()
    reader = ShardReader(dataset.store, dataset.manifest)
    with pytest.raises(DataError, match="the shard is gone; open the dataset again"):
        reader.read_rows(dataset.shards[0], "reward", 0, 2)
    with pytest.raises(DataError, match=r"the file ends after \d+; it is truncated"):
        reader.read_rows(dataset.shards[1], "reward", 0, 2)
