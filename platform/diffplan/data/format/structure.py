"""The structure that the file of a shard must have before anything in it is read.

Columns are read from where the commit says they lie, so a file of any other structure, even a sound Arrow file, would
be taken for numbers that it does not hold.
"""

from __future__ import annotations

import pyarrow as pa

from diffplan.data.format.commit_record import ShardRecord
from diffplan.data.format.manifest import SHARDS, Manifest
from diffplan.data.format.writer import locate_columns
from diffplan.errors import DataError

CURE = "run `diffplan data verify --drop_damaged`, then make its units again (collect with --resume, or import again)"


def check_structure(path: object, content: pa.Buffer, shard: ShardRecord, manifest: Manifest) -> pa.RecordBatch:
    """The rows of a shard, none of which are read.

    Args:
        path: where the shard lies, for messages.
        content: its bytes.
        shard: what the index says of it.
        manifest: that of the dataset.

    Raises:
        DataError: not an Arrow IPC file, other columns or rows than expected, values missing or elsewhere, or a shard
            of other units or of another dataset.
    """
    try:
        reader = pa.ipc.open_file(content)
        num_batches = reader.num_record_batches
        batch = reader.get_batch(0) if num_batches else None
        if batch is not None:
            batch.validate()  # that buffers are as long as their rows need
        names, metadata = reader.schema.names, reader.schema.metadata or {}
        has_columns = reader.schema.remove_metadata().equals(manifest.arrow_schema)
    except (pa.ArrowException, OSError, ValueError) as error:  # text that is not UTF-8 is a ValueError
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
