"""Import the flat HDF5 files of D4RL: all steps in sequence, with flags at the ends of episodes.

An episode ends where `terminals` or `timeouts` is set, where the array named by `split_on` changes, where
`next_observations` is not the next row (an unmarked reset), and with the file. D4RL stores the observation *before*
each action, so the observation after an episode's last action is

* the last row of `next_observations`, if the file has that array; every row is kept;
* else, where only `split_on` changes and the stream goes on without a jump, the first observation of the next episode;
  every row is kept;
* else, for an episode that was cut (timeout, split or end of the file), the observation of its last row: the action and
  reward of that row are dropped, and so are episodes of a single row;
* else, for a terminated episode, a copy of its last observation: the true one is not in the file, and dropping the row
  would lose the reward of the terminal transition.

The number of episodes of each kind is written to the manifest (`source.final_observations`).
"""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffplan.config import EnvConfig, config_to_dict
from diffplan.data.exchange.hdf5_files import require_own_data
from diffplan.data.exchange.unit_import import OnProgress, import_units
from diffplan.data.format.dataset import TrajectoryDataset
from diffplan.data.format.manifest import ARROW_TYPES, Column, Manifest, make_columns, new_dataset_uuid
from diffplan.errors import ConfigError, DataError
from diffplan.tasks.registry import fill_roles
from diffplan.types import Episode

REQUIRED = ("observations", "actions", "rewards", "terminals")
OPTIONAL = ("timeouts", "next_observations")
CHUNK_ROWS = 2**18
"""Rows that are compared at once."""


def import_d4rl(
    path: str | Path,
    out: str | Path,
    *,
    env: EnvConfig,
    split_on: str | None = None,
    float32: bool = False,
    episodes_per_unit: int = 64,
    on_progress: OnProgress | None = None,
) -> TrajectoryDataset:
    """Import a file of D4RL.

    Observations, actions and rewards keep their types; arrays under `infos/` become columns `infos.<name>`. Text and
    numbers under `metadata/` go to the manifest. An interrupted import continues when it is run again.

    Args:
        path: the file.
        out: directory or URL of the new dataset.
        env: the environment of the file; D4RL's files do not name it.
        split_on: an array of the file, such as `infos/goal`, whose changes begin a new episode: files of goal-reaching
            tasks are one stream in which only the goal changes. The episode before a change counts as truncated.
        float32: store float64 as float32.
        episodes_per_unit: episodes in one unit, which becomes one shard.
        on_progress: called with the number of episodes done and their total.

    Raises:
        DataError: no readable HDF5 file, arrays that are missing or of unequal length, no rows, sizes that do not match
            the environment, non-finite numbers, or another dataset in `out`.
    """
    path = Path(path)
    with _open_file(path) as file:
        arrays = _find_arrays(file, path)
        with _guard(path):
            spans, num_dropped = _split(file, arrays, path, split_on)
        columns = _make_columns(file, arrays, float32)
        low, high = _bounds(env, columns, path)
        num_rows = len(file["rewards"])
        digest = hashlib.sha256(b"".join(_flat(file, name).tobytes() for name in ("rewards", "terminals")))
        kinds = ("next", "following", "last_row", "repeated")
        manifest = Manifest(
            dataset_uuid=new_dataset_uuid(),
            env=config_to_dict(fill_roles(env)),
            columns=columns,
            action_low=low,
            action_high=high,
            source={
                "kind": "d4rl",
                "file": path.name,
                "num_bytes": path.stat().st_size,
                "fingerprint": digest.hexdigest(),
                "num_rows": num_rows,
                "num_dropped_rows": num_dropped,
                "final_observations": {kind: sum(span.final == kind for span in spans) for kind in kinds},
                "split_on": split_on,
                "float32": float32,
                "episodes_per_unit": episodes_per_unit,
                "metadata": _read_metadata(file),
            },
        )
        if len(spans) == 1 and num_rows > 10_000:
            hint = "; --split_on infos/goal begins one wherever the goal changes" if "infos/goal" in arrays else ""
            warnings.warn(f"{path}: all {num_rows:,} rows are one episode{hint}", stacklevel=2)
        if num_dropped:
            warnings.warn(
                f"{path}: {num_dropped:,} of {num_rows:,} rows are dropped: the last ones of episodes that were cut, "
                "because the observation after them is not in the file",
                stacklevel=2,
            )

        def read_unit(indices: range) -> list[Episode]:
            with _guard(path):
                return [_read_episode(file, columns, i, spans[i], path.stem) for i in indices]

        return import_units(out, manifest, len(spans), episodes_per_unit, read_unit, on_progress)


@dataclass(frozen=True)
class _Span:
    """Rows of an episode; `final` is the source of its final observation: see the module."""

    first: int
    length: int
    terminated: bool
    truncated: bool
    final: str


@contextlib.contextmanager
def _open_file(path: Path) -> Iterator[Any]:
    try:
        import h5py
    except ImportError:
        raise DataError(f"{path}: D4RL's files need h5py; install it: pip install h5py") from None
    if not path.is_file():
        raise DataError(f"{path}: expected an HDF5 file of D4RL, got no file")
    with _guard(path):
        file = h5py.File(path, "r")
    with file:
        with _guard(path):
            require_own_data(file, path)
        yield file


@contextlib.contextmanager
def _guard(path: Path) -> Iterator[None]:
    """Convert h5py's errors for damaged files to a `DataError`."""
    try:
        yield
    except DataError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{path}: expected an HDF5 file of D4RL, got one that cannot be read ({first})") from None


def _find_arrays(file: Any, path: Path) -> list[str]:
    """Names of the arrays that have a row per step; raises `DataError` if they are inconsistent."""
    with _guard(path):
        return _check_arrays(file, path)


def _check_arrays(file: Any, path: Path) -> list[str]:
    import h5py

    group = file.get("infos")
    infos = [f"infos/{name}" for name in sorted(group)] if isinstance(group, h5py.Group) else []
    names = [name for name in (*REQUIRED, *OPTIONAL, *infos) if isinstance(file.get(name), h5py.Dataset)]
    for name in REQUIRED:
        if name not in names:
            found = ", ".join(names or file) or "nothing"
            raise DataError(f"{path}: expected an array {name!r}, got {found}; is it a file of D4RL?")
    unfit = [n for n in names if n.startswith("infos/") and str(file[n].dtype) not in (*ARROW_TYPES, "float16")]
    if unfit:
        warnings.warn(f"{path}: left out {', '.join(unfit)}, which no column can hold", stacklevel=4)
    names = [name for name in names if name not in unfit]
    num_rows = len(file["observations"]) if file["observations"].ndim else 0
    if not num_rows:
        raise DataError(f"{path}: expected at least one row, got none")
    for name in names:
        shape = file[name].shape
        if not shape or shape[0] != num_rows:
            raise DataError(f"{path}: {name}: expected {num_rows} rows, as many as observations, got shape {shape}")
        if name in ("observations", "actions") and not file[name].size:
            raise DataError(f"{path}: {name}: expected at least one column, got shape {shape}")
        if name in ("rewards", "terminals", "timeouts") and file[name].size != num_rows:
            raise DataError(f"{path}: {name}: expected one number per row, got shape {shape}")
        if name not in ("terminals", "timeouts") and str(file[name].dtype) not in (*ARROW_TYPES, "float16"):
            raise DataError(f"{path}: {name}: expected numbers, got {file[name].dtype}")
    if "next_observations" in names and file["next_observations"].shape != file["observations"].shape:
        raise DataError(f"{path}: next_observations: expected the shape of observations, {file['observations'].shape}")
    return names


def _split(file: Any, arrays: list[str], path: Path, split_on: str | None) -> tuple[list[_Span], int]:
    """The episodes, and the number of dropped rows."""
    num_rows = len(file["rewards"])
    terminals = _read_flags(file, "terminals", path)
    timeouts = _read_flags(file, "timeouts", path) if "timeouts" in arrays else np.zeros(num_rows, bool)
    cuts = np.zeros(num_rows, bool)
    if split_on is not None:
        if split_on not in arrays:
            known = ", ".join(name for name in arrays if name.startswith("infos/")) or "none"
            raise DataError(f"{path}: split_on: expected an array of the file ({known}), got {split_on!r}")
        values = file[split_on][:].reshape(num_rows, -1)
        cuts[:-1] = (values[1:] != values[:-1]).any(axis=1)
    has_next = "next_observations" in arrays
    flagged = terminals | timeouts
    resets = _find_resets(file, flagged, path) if has_next else np.zeros(num_rows, bool)
    ends = flagged | cuts | resets
    ends[-1] = True
    goes_on = np.zeros(num_rows, bool) if has_next else _find_continued(file, cuts & ~flagged, ends)
    lasts = np.flatnonzero(ends)
    firsts = np.concatenate([[0], lasts[:-1] + 1])
    spans, num_dropped = [], 0
    for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
        terminated = bool(terminals[last])
        final = "next" if has_next else "repeated" if terminated else "following" if goes_on[last] else "last_row"
        length = last - first + (final != "last_row")
        num_dropped += final == "last_row"
        if length:
            truncated = bool(timeouts[last] | cuts[last] | resets[last])
            spans.append(_Span(first, length, terminated, truncated, final))
    if not spans:
        raise DataError(f"{path}: expected an episode of more than one row, got {num_rows} rows without any")
    return spans, num_dropped


def _read_flags(file: Any, name: str, path: Path) -> np.ndarray:
    """Flags of each row, bool[rows]; raises `DataError` for values other than 0 and 1, which would end episodes."""
    values = _flat(file, name)
    odd = (values != 0) & (values != 1)
    if odd.any():
        row = int(odd.argmax())
        raise DataError(
            f"{path}: {name}: expected flags 0 and 1, got {values[row]} in row {row} and {int(odd.sum()):,} such rows "
            "in all; mend them in the source"
        )
    return values.astype(bool)


def _find_resets(file: Any, flagged: np.ndarray, path: Path) -> np.ndarray:
    """Rows without a flag whose next observation is not the observation of the next row, bool[rows]; with a warning.

    Raises:
        DataError: most rows are like that, so they are no sequence.
    """
    num_rows = len(flagged)
    resets = np.zeros(num_rows, bool)
    for first in range(0, num_rows - 1, CHUNK_ROWS):
        end = min(first + CHUNK_ROWS, num_rows - 1)
        after = file["next_observations"][first:end].reshape(end - first, -1)
        following = file["observations"][first + 1 : end + 1].reshape(end - first, -1)
        resets[first:end] = ~np.isclose(after, following, rtol=1e-4, atol=1e-6, equal_nan=True).all(axis=1)
    resets &= ~flagged
    num_resets, num_open = int(resets.sum()), int((~flagged[:-1]).sum())
    if num_resets > 0.5 * num_open:
        raise DataError(
            f"{path}: next_observations: expected the observations of the next rows, got others in {num_resets:,} of "
            f"{num_open:,} rows; the rows are no sequence of steps"
        )
    if num_resets:
        warnings.warn(
            f"{path}: {num_resets:,} resets without a flag, where next_observations is not the next row (the first in "
            f"row {int(resets.argmax()):,}); an episode ends at each of them",
            stacklevel=5,
        )
    return resets


def _find_continued(file: Any, cuts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Cuts over which the stream of observations goes on, bool[rows].

    That is, no entry changes more than it ever does between two rows of an episode: a reset would be a jump.
    """
    if not cuts.any():
        return cuts
    observations = file["observations"][:].reshape(len(cuts), -1)
    inner = ~ends[:-1]
    changes = np.abs(np.diff(observations.astype(np.float64), axis=0))
    largest = changes[inner].max(axis=0, initial=0.0)
    return cuts & np.append((changes <= largest).all(axis=1), False)


def _flat(file: Any, name: str) -> np.ndarray:
    with _guard(Path(file.filename)):
        return file[name][:].reshape(-1)


def _make_columns(file: Any, arrays: list[str], float32: bool) -> tuple[Column, ...]:
    def dtype(name: str) -> str:
        found = str(file[name].dtype.newbyteorder("="))
        return "float32" if found == "float16" or (float32 and found == "float64") else found

    extra = tuple(
        Column(name.replace("/", "."), file[name].shape[1:], dtype(name))
        for name in arrays
        if name.startswith("infos/")
    )
    return make_columns(
        file["observations"].shape[1:],
        file["actions"].shape[1:],
        extra,
        observation_dtype=dtype("observations"),
        action_dtype=dtype("actions"),
        reward_dtype=dtype("rewards"),
    )


def _bounds(env: EnvConfig, columns: tuple[Column, ...], path: Path) -> tuple[list[float | None], list[float | None]]:
    """Bounds of the actions: those of the environment, or none if it cannot be made on this machine."""
    from diffplan.environments import get_box_bounds, make_vector_env

    try:
        vector_env = make_vector_env(env, 1)
    except (ConfigError, ImportError):
        return [None] * columns[1].size, [None] * columns[1].size
    try:
        low, high = get_box_bounds(vector_env)
        shape = vector_env.single_observation_space.shape
    except ConfigError:
        return [None] * columns[1].size, [None] * columns[1].size
    finally:
        vector_env.close()
    for name, found, expected in (
        ("observations", columns[0].shape, shape),
        ("actions", columns[1].shape, (len(low),)),
    ):
        if expected is not None and found != expected:
            raise DataError(
                f"{path}: {name}: expected shape {expected} per row, as {env.env_id} has it, got {found}; name the "
                "environment that the file is of"
            )
    return low, high


def _read_metadata(file: Any) -> dict[str, Any]:
    """Text and single numbers of the group `metadata`; weights of policies are left out."""
    import h5py

    found: dict[str, Any] = {}
    with _guard(Path(file.filename)):
        group = file.get("metadata")
        for name, value in group.items() if isinstance(group, h5py.Group) else ():
            if isinstance(value, h5py.Dataset) and value.size == 1:
                plain = np.ravel(value[()])[0]
                found[name] = plain.decode(errors="replace") if isinstance(plain, bytes) else str(plain)
    return found


def _read_episode(file: Any, columns: tuple[Column, ...], index: int, span: _Span, behavior: str) -> Episode:
    first, end = span.first, span.first + span.length

    def rows(name: str, column: Column, stop: int = end) -> np.ndarray:
        return file[name][first:stop].astype(column.numpy_dtype).reshape(stop - first, *column.shape)

    observation, action, reward, *extra = columns
    if span.final in ("last_row", "following"):
        observations = rows("observations", observation, end + 1)
    else:
        observations = rows("observations", observation)
        last = observations[-1:]
        if span.final == "next":
            last = file["next_observations"][end - 1 : end].astype(observation.numpy_dtype)
        observations = np.concatenate([observations, last])
    return Episode(
        episode_index=index,
        seed=None,
        behavior=behavior,
        observations=observations,
        actions=rows("actions", action),
        rewards=rows("rewards", reward),
        terminated=span.terminated,
        truncated=span.truncated,
        columns={column.name: rows(column.name.replace(".", "/", 1), column) for column in extra},
    )
