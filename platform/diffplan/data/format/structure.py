"""Check of the structure of a shard's file, before any of its values are read.

Columns are read at the offsets in the commit, so a file of another structure, even a valid Arrow file, would be read as
wrong numbers.
"""

from __future__ import annotations

import pyarrow as pa

from diffplan.data.format.arrow_file import needs_inflating
from diffplan.data.format.commit_record import ShardRecord
from diffplan.data.format.manifest import SHARDS, Manifest
from diffplan.data.format.writer import locate_columns
from diffplan.errors import DataError

CURE = "run `diffplan data verify --drop_damaged`, then make its units again (collect with --resume, or import again)"


def check_structure(path: object, content: pa.Buffer, shard: ShardRecord, manifest: Manifest) -> pa.RecordBatch:
    """The record batch of a shard, without reading its rows.

    Args:
        path: path of the shard, for messages.
        content: its bytes.
        shard: its record in the index.
        manifest: the manifest of the dataset.

    Raises:
        DataError: not an Arrow IPC file, unexpected columns or number of rows, missing values, other offsets, or a
            shard of other units or of another dataset.
    """
    try:
        reader = pa.ipc.open_file(content)
        num_batches = reader.num_record_batches
        if needs_inflating(memoryview(content)):
            raise DataError(f"{path}: expected an uncompressed shard, got one that is compressed or encoded; {CURE}")
        batch = reader.get_batch(0) if num_batches else None
        if batch is not None:
            batch.validate()  # checks that buffers are long enough for their rows
        names, metadata = reader.schema.names, reader.schema.metadata or {}
        has_columns = reader.schema.remove_metadata().equals(manifest.arrow_schema)
    except DataError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: text that is not UTF-8
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: expected an Arrow IPC file, got something else ({first}); {CURE}") from None
    num_rows = 0 if batch is None else batch.num_rows
    if batch is None or num_batches != 1 or num_rows != shard.num_rows:
        raise DataError(
            f"{path}: expected 1 record batch of {shard.num_rows} rows, got {num_batches} with {num_rows} in the "
            f"first; {CURE}"
        )
    if not has_columns:
        expected = [field.name for field in manifest.arrow_schema]
        raise DataError(f"{path}: expected the columns {expected}, got {names} or other types; {CURE}")
    for name, array in zip(names, batch.columns, strict=True):
        missing = array.null_count + (array.values.null_count if isinstance(array, pa.FixedSizeListArray) else 0)
        if missing:
            raise DataError(f"{path}: expected a value in every row of column {name!r}, got {missing} nulls; {CURE}")
    _check_names(path, metadata, shard, manifest)
    if locate_columns(content, manifest) != shard.offsets:
        raise DataError(
            f"{path}: columns do not lie where the commit says: the file is compressed or of another byte order, or "
            f"shard or commit is damaged; {CURE}"
        )
    return batch


def _check_names(path: object, metadata: dict[bytes, bytes], shard: ShardRecord, manifest: Manifest) -> None:
    uuid = metadata.get(b"diffplan.dataset_uuid", b"").decode(errors="replace")
    if uuid != manifest.dataset_uuid:
        raise DataError(
            f"{path}: expected a shard of dataset {manifest.dataset_uuid}, got one of {uuid or 'none'}; {CURE}"
        )
    units = metadata.get(b"diffplan.units", b"").decode(errors="replace")
    expected = shard.name.removeprefix(f"{SHARDS}/").rpartition("-")[0]
    if units != expected:
        raise DataError(f"{path}: expected a shard of the units {expected}, got one of {units or 'none'}; {CURE}")
