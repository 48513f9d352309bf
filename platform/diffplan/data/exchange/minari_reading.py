"""Read Minari datasets of every storage format, one episode at a time.

HDF5 is read by Minari's own storage. The files of `arrow` and `parquet` are read here: Minari's reader reads only the
first batch of a file, so it truncates long episodes, and cannot decode infos that are nested or plain numbers.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from diffplan.data.exchange.hdf5_files import require_own_data
from diffplan.errors import DataError

ARROW_FORMATS = ("arrow", "parquet")


@dataclass(frozen=True)
class MinariSource:
    """A Minari dataset that is being read.

    Attributes:
        dataset: the `minari.MinariDataset`.
        path: the directory of its data.
        metadata: its metadata as JSON values.
    """

    dataset: Any
    path: Path
    metadata: dict[str, Any]

    @property
    def dataset_id(self) -> str:
        """Its id."""
        return self.dataset.id

    @property
    def num_episodes(self) -> int:
        """Its episodes."""
        return int(self.metadata["total_episodes"])

    def fingerprint(self) -> str:
        """Identifies the dataset: a SHA-256 of the metadata and of the first and the last episode."""
        digest = hashlib.sha256(json.dumps(self.metadata, sort_keys=True).encode())
        for tree, _ in read_episodes(self, sorted({0, self.num_episodes - 1})):
            _digest_tree(digest, tree)
        return digest.hexdigest()


def open_minari(source: str | Path) -> MinariSource:
    """Open a dataset on this machine.

    Args:
        source: its directory, or its id, looked up under `MINARI_DATASETS_PATH`. Nothing is downloaded.

    Raises:
        DataError: no such dataset, one that this version of Minari cannot read, or one without episodes.
    """
    try:
        import minari
        from minari.dataset.minari_storage import MinariStorage
        from minari.storage.datasets_root_dir import get_dataset_path
    except ImportError as error:
        raise DataError(f"{source}: {error}; install what Minari needs: pip install 'minari[hdf5]'") from None
    path = Path(source)
    if not path.is_dir():
        if isinstance(source, Path) or path.is_absolute():
            raise DataError(f"{source}: expected the directory of a Minari dataset or its id, got no directory")
        path = get_dataset_path(str(source))
        if not path.is_dir():
            raise DataError(
                f"{source}: expected the id of a Minari dataset on this machine, got none at {path}; run "
                f"`minari download {source}`, or set MINARI_DATASETS_PATH"
            )
    path = path if (path / "metadata.json").is_file() else path / "data"
    for file in path.glob("*"):  # opening a pipe would wait for somebody to write into it
        if not (file.is_file() or file.is_dir()):
            raise DataError(f"{file}: expected a file of the dataset, got a pipe, device or broken link; delete it")
    try:
        metadata = MinariStorage.read_raw_metadata(path)
        dataset = minari.MinariDataset(str(path))
        num_episodes = int(metadata["total_episodes"])
    except Exception as error:  # Minari does not wrap the errors of damaged files
        raise DataError(f"{path}: expected a Minari dataset, got {_describe(error)}") from None
    if num_episodes < 1:
        raise DataError(f"{path}: expected a Minari dataset with episodes, got one without")
    return MinariSource(dataset, path, metadata)


def read_episodes(source: MinariSource, indices: Iterable[int]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Episodes as Minari's nested dicts of arrays, each with its own metadata.

    Raises:
        DataError: an episode is missing or damaged.
    """
    indices = list(indices)
    storage = source.dataset.storage
    own = storage.FORMAT in ARROW_FORMATS
    # One generator per episode, so that an error names its episode.
    for index in indices:
        try:
            _require_own_files(source, index)
            tree = _read_arrow(source, index) if own else next(iter(storage.get_episodes([index])))
            metadata = next(iter(storage.get_episode_metadata([index])))
        except DataError:
            raise
        except Exception as error:  # h5py, Arrow, PIL and Minari have different exceptions
            raise DataError(f"{source.path}: episode {index} cannot be read: {_describe(error)}") from None
        yield tree, metadata


def _require_own_files(source: MinariSource, index: int) -> None:
    """Raise `DataError` if an episode has data of files outside the dataset."""
    root = source.path.resolve()
    if source.dataset.storage.FORMAT in ARROW_FORMATS:
        files = [source.path / str(index), *(source.path / str(index)).iterdir()]
    else:
        files = [source.path / "main_data.hdf5"]
        import h5py

        with h5py.File(files[0], "r") as file:
            name = f"episode_{index}"
            if isinstance(link := file.get(name, getlink=True), h5py.ExternalLink):
                raise DataError(f"{files[0]}: {name}: expected data in the file itself, got a link to {link.filename}")
            require_own_data(file[name], files[0])
    for path in files:
        if not (path.is_file() or path.is_dir()):
            raise DataError(f"{path}: expected a file of the dataset, got a pipe, device or broken link; delete it")
        if not path.resolve().is_relative_to(root):
            raise DataError(f"{path}: expected a file of the dataset, got a link to {path.resolve()}; copy it there")


def _describe(error: Exception) -> str:
    first = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
    return f"{type(error).__name__}: {first}"


def _digest_tree(digest: Any, tree: Any) -> None:
    if isinstance(tree, dict):
        for name in sorted(tree):
            digest.update(str(name).encode())
            _digest_tree(digest, tree[name])
    elif isinstance(tree, np.ndarray) and tree.dtype.kind != "O":
        digest.update(f"{tree.dtype}{tree.shape}".encode() + np.ascontiguousarray(tree).tobytes())
    else:
        digest.update(repr(tree).encode())


def _read_arrow(source: MinariSource, index: int) -> dict[str, Any]:
    import pyarrow.dataset as pa_dataset

    storage = source.dataset.storage
    files = pa_dataset.dataset(
        str(source.path / str(index)), format=storage.FORMAT, ignore_prefixes=["_", ".", "metadata.json"]
    )
    table = files.to_table().combine_chunks()
    if table.num_rows < 2:
        raise ValueError(f"expected at least 2 rows, got {table.num_rows}")
    columns = {name: table.column(name).chunk(0) for name in table.column_names}
    jpeg = storage.jpeg_encoding
    # All columns but observations and infos are padded by one row.
    return {
        "observations": _decode_space(source.dataset.observation_space, columns["observations"], jpeg),
        "actions": _decode_space(source.dataset.action_space, columns["actions"].slice(0, table.num_rows - 1), jpeg),
        **{name: _to_numpy(columns[name])[:-1] for name in ("rewards", "terminations", "truncations")},
        "infos": _decode_info(columns["infos"]) if "infos" in columns else {},
    }


def _decode_space(space: Any, array: pa.Array, jpeg: bool) -> Any:
    from gymnasium import spaces
    from minari.dataset.minari_storage import is_image_space

    if isinstance(space, spaces.Dict):
        return {name: _decode_space(inner, array.field(name), jpeg) for name, inner in space.spaces.items()}
    if isinstance(space, spaces.Tuple | spaces.Text):
        return tuple(array.to_pylist()) if isinstance(space, spaces.Tuple) else array.to_pylist()
    if jpeg and is_image_space(space):
        from PIL import Image

        return np.stack([np.asarray(Image.open(io.BytesIO(image.as_py()))) for image in array])
    if pa.types.is_fixed_size_list(array.type):
        return _to_numpy(array.flatten()).reshape(len(array), *space.shape)
    return _to_numpy(array)


def _decode_info(array: pa.Array, field: pa.Field | None = None) -> Any:
    """An info as an array or dict; values other than arrays of numbers are returned as a list."""
    kind = array.type
    if pa.types.is_struct(kind):
        return {kind.field(i).name: _decode_info(array.field(i), kind.field(i)) for i in range(kind.num_fields)}
    if pa.types.is_fixed_size_list(kind):
        written = (field.metadata or {}).get(b"shape") if field is not None else None
        shape = (kind.list_size,) if written is None else tuple(int(n) for n in written.split(b",") if n)
        return _to_numpy(array.flatten()).reshape(len(array), *shape)
    if pa.types.is_list(kind):
        sizes = set(array.value_lengths().to_pylist())
        inner = _decode_info(array.flatten())
        if len(sizes) != 1 or None in sizes or not isinstance(inner, np.ndarray):
            return array.to_pylist()
        return inner.reshape(len(array), sizes.pop(), *inner.shape[1:])
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return _to_numpy(array)
    return array.to_pylist()


def _to_numpy(array: pa.Array) -> np.ndarray:
    return array.to_numpy(zero_copy_only=False)
