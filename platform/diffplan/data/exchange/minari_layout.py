"""The mapping between arrays of a Minari episode and columns of a dataset.

Arrays of a Minari episode are named by paths such as `observations/achieved_goal` or `infos/qpos`:

* `observations`, or its entry called `observation`, fills the column `observation`. If a dict has no such entry, its
  float vectors are concatenated in the order of their names.
* `actions` fills `action`, as int64 for integers; `rewards` fills `reward`.
* Everything else is a column of its own: `observation.<path>` or `infos.<path>`, with dots between the parts of a path.

An array whose type is not possible for a column is stored in a wider type, and the layout has the original one, so
nothing is lost.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from diffplan.data.format.manifest import ARROW_TYPES, Column, make_columns
from diffplan.errors import DataError

WIDER_TYPES = {"float16": "float32", "int8": "int32", "int16": "int32", "uint16": "int32", "uint32": "int64"}
"""Column types for array types that columns do not support."""

Path = tuple[str, ...]


@dataclass(frozen=True)
class Leaf:
    """An array of a Minari episode.

    Attributes:
        path: its path in the episode.
        column: the column that it fills, entirely or in part.
        shape: shape of the value of one row, in Minari.
        dtype: type of the values, in Minari.
        start: its first entry in the column, if several arrays are concatenated.
    """

    path: Path
    column: str
    shape: tuple[int, ...]
    dtype: str
    start: int = 0

    @property
    def size(self) -> int:
        """Numbers per row."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """All arrays of an episode in Minari and all columns of the dataset.

    Attributes:
        columns: columns of the dataset.
        leaves: the arrays that fill them; those of one column are consecutive.
    """

    columns: tuple[Column, ...]
    leaves: tuple[Leaf, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON values; the inverse of `from_dict`."""
        return {"columns": [asdict(c) for c in self.columns], "leaves": [asdict(leaf) for leaf in self.leaves]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Layout:
        """Read from JSON values; raises `ValueError`, `TypeError`, `KeyError` or `DataError` if invalid."""
        columns = tuple(Column(**{**c, "shape": tuple(c["shape"])}) for c in values["columns"])
        leaves = tuple(Leaf(**{**v, "path": tuple(v["path"]), "shape": tuple(v["shape"])}) for v in values["leaves"])
        layout = cls(columns, leaves)
        observation, action, reward = columns[:3]
        if [c.name for c in columns[:3]] != ["observation", "action", "reward"]:
            raise ValueError("columns must begin with observation, action and reward")
        make_columns(
            observation.shape,
            action.shape,
            columns[3:],
            observation_dtype=observation.dtype,
            action_dtype=action.dtype,
            reward_dtype=reward.dtype,
        )
        filled: dict[str, int] = {}
        for leaf in leaves:
            if leaf.start != filled.get(leaf.column, 0):
                raise ValueError(f"the array {'/'.join(leaf.path)} does not begin where the one before it ends")
            filled[leaf.column] = leaf.start + leaf.size
        if filled != {column.name: column.size for column in columns}:
            raise ValueError("its arrays do not fill its columns")
        return layout

    def without_infos(self) -> Layout:
        """The layout without the arrays of `infos` and the columns that they fill."""
        dropped = {leaf.column for leaf in self.leaves if leaf.path[0] == "infos"}
        return Layout(
            tuple(column for column in self.columns if column.name not in dropped),
            tuple(leaf for leaf in self.leaves if leaf.column not in dropped),
        )

    def with_float32(self) -> Layout:
        """The layout with float32 in place of float64, in arrays and columns."""

        def narrow(dtype: str) -> str:
            return "float32" if dtype == "float64" else dtype

        return Layout(
            tuple(replace(column, dtype=narrow(column.dtype)) for column in self.columns),
            tuple(replace(leaf, dtype=narrow(leaf.dtype)) for leaf in self.leaves),
        )

    def to_columns(self, arrays: dict[Path, np.ndarray], length: int, where: str) -> dict[str, np.ndarray]:
        """The columns of an episode.

        Args:
            arrays: its arrays by path, without omitted ones.
            length: its number of steps.
            where: names the episode in errors.

        Raises:
            DataError: an array is missing or unknown, or its shape or type differs from the layout.
        """
        if unknown := set(arrays) - {leaf.path for leaf in self.leaves}:
            raise DataError(
                f"{where}: expected the same arrays as in the first episode, got also {name_of(min(unknown))}"
                f"{remedy(min(unknown))}"
            )
        parts: dict[str, list[np.ndarray]] = {column.name: [] for column in self.columns}
        by_name = {column.name: column for column in self.columns}
        for leaf in self.leaves:
            column = by_name[leaf.column]
            values = arrays.get(leaf.path)
            expected = (length + column.has_final, *leaf.shape)
            if values is None or values.shape != expected:
                got = "nothing" if values is None else f"shape {values.shape}"
                raise DataError(
                    f"{where}: {name_of(leaf.path)}: expected shape {expected}, as in the first episode, got {got}"
                    f"{remedy(leaf.path)}"
                )
            if not np.can_cast(values.dtype, leaf.dtype, "safe"):
                raise DataError(
                    f"{where}: {name_of(leaf.path)}: expected {leaf.dtype}, as in the first episode, got "
                    f"{values.dtype}{remedy(leaf.path)}"
                )
            parts[leaf.column].append(values.reshape(len(values), leaf.size).astype(column.numpy_dtype, copy=False))
        return {
            c.name: np.concatenate(parts[c.name], axis=1).reshape(length + c.has_final, *c.shape) for c in self.columns
        }

    def to_tree(self, columns: dict[str, np.ndarray]) -> dict[str, Any]:
        """The arrays of an episode as nested dicts, from its columns; the inverse of `to_columns`."""
        tree: dict[str, Any] = {}
        for leaf in self.leaves:
            values = columns[leaf.column]
            flat = values.reshape(len(values), -1)[:, leaf.start : leaf.start + leaf.size]
            node = tree
            for name in leaf.path[:-1]:
                node = node.setdefault(name, {})
            node[leaf.path[-1]] = flat.reshape(len(values), *leaf.shape).astype(leaf.dtype)
        return tree


def infer_layout(arrays: dict[Path, np.ndarray], length: int, where: str) -> Layout:
    """The layout of a dataset whose first episode has these arrays.

    Args:
        arrays: the arrays by path.
        length: steps of the episode.
        where: names the episode in errors.

    Raises:
        DataError: arrays that no column can store, or observations without a vector.
    """
    main = _main_observation(arrays, where)
    extra = sorted(path for path in arrays if path not in (*main, ("actions",), ("rewards",)))
    columns, leaves = [], []
    for name, paths in (("observation", main), ("action", [("actions",)]), ("reward", [("rewards",)])):
        found = _leaves(arrays, paths, name)
        dtype = np.result_type(*(leaf.dtype for leaf in found))
        shape = found[0].shape if len(found) == 1 else (sum(leaf.size for leaf in found),)
        stored = "int64" if name == "action" and dtype.kind in "iu" else _stored_type(str(dtype))
        # Values after the last action are stored in the index, which has no boolean type.
        stored = "uint8" if stored == "bool" else stored
        columns.append(Column(name, shape, stored, name == "observation"))
        leaves += found
    for path in extra:
        name = ".".join(("observation" if path[0] == "observations" else path[0], *path[1:]))
        (leaf,) = _leaves(arrays, [path], name)
        columns.append(Column(name, leaf.shape, _stored_type(leaf.dtype), len(arrays[path]) == length + 1))
        leaves.append(leaf)
    layout = Layout(tuple(columns), tuple(leaves))
    try:
        return Layout.from_dict(layout.to_dict())
    except (DataError, ValueError) as error:
        raise DataError(f"{where}: {error}; leave the infos out with --skip_infos") from None


def default_layout(columns: tuple[Column, ...]) -> Layout:
    """The layout of a dataset that did not come from Minari: further columns become infos of their names."""
    paths = {"observation": ("observations",), "action": ("actions",), "reward": ("rewards",)}
    leaves = (Leaf(paths.get(c.name, ("infos", *c.name.split("/"))), c.name, c.shape, c.dtype) for c in columns)
    return Layout(columns, tuple(leaves))


def flatten_tree(tree: dict[str, Any], length: int, where: str, *, skip_infos: bool) -> dict[Path, np.ndarray]:
    """The arrays of an episode by path: observations, actions, rewards and infos.

    Args:
        tree: the episode as nested dicts, from Minari.
        length: its number of steps.
        where: names the episode in errors.
        skip_infos: leave infos out.

    Raises:
        DataError: a value that is not an array of numbers with a row for each step.
    """
    found: dict[Path, Any] = {}

    def visit(path: Path, value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                visit((*path, name), inner)
        else:
            found[path] = value

    for name in ("observations", "actions", "rewards", *(() if skip_infos else ("infos",))):
        if name == "actions" and isinstance(tree["actions"], dict):
            raise DataError(f"{where}: actions: expected one array, got a dict of {sorted(tree['actions'])}")
        if tree.get(name) is not None:
            visit((name,), tree[name])
    return {path: _as_numbers(path, value, length, where) for path, value in found.items()}


def name_of(path: Path) -> str:
    """The name of an array for users."""
    return "/".join(path)


def remedy(path: Path) -> str:
    """Advice for errors about an array that does not fit; begins with a separator, empty without advice."""
    return "; leave the infos out with --skip_infos" if path[0] == "infos" else ""


def _as_numbers(path: Path, value: Any, length: int, where: str) -> np.ndarray:
    kind = "a tuple" if isinstance(value, tuple) else "text, or rows of varying length"
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
        raise DataError(f"{where}: {name_of(path)}: expected numbers of one shape, got {kind}{remedy(path)}")
    value = value.astype(value.dtype.newbyteorder("="), copy=False)
    rows = {"observations": (length + 1,), "infos": (length, length + 1)}.get(path[0], (length,))
    if value.ndim == 0 or len(value) not in rows or 0 in value.shape[1:]:
        expected = " or ".join(map(str, rows))
        raise DataError(
            f"{where}: {name_of(path)}: expected {expected} rows with at least one number each, got shape "
            f"{value.shape}{remedy(path)}"
        )
    if str(value.dtype) not in ARROW_TYPES and str(value.dtype) not in WIDER_TYPES:
        known = ", ".join((*ARROW_TYPES, *WIDER_TYPES))
        raise DataError(f"{where}: {name_of(path)}: expected one of {known}, got {value.dtype}{remedy(path)}")
    return value


def _main_observation(arrays: dict[Path, np.ndarray], where: str) -> list[Path]:
    """Paths of the arrays that make up the observation."""
    paths = sorted(path for path in arrays if path[0] == "observations")
    if ("observations",) in paths:
        return [("observations",)]
    if named := [path for path in paths if path[-1] == "observation"]:
        return [min(named, key=len)]
    vectors = [path for path in paths if arrays[path].ndim == 2 and arrays[path].dtype.kind == "f"]
    if not vectors:
        got = ", ".join(f"{name_of(p)} {arrays[p].dtype}{list(arrays[p].shape[1:])}" for p in paths) or "nothing"
        raise DataError(f"{where}: observations: expected an entry 'observation' or vectors of floats, got {got}")
    return vectors


def _leaves(arrays: dict[Path, np.ndarray], paths: list[Path], column: str) -> list[Leaf]:
    leaves: list[Leaf] = []
    for path in paths:
        start = leaves[-1].start + leaves[-1].size if leaves else 0
        leaves.append(Leaf(path, column, arrays[path].shape[1:], str(arrays[path].dtype), start))
    return leaves


def _stored_type(dtype: str) -> str:
    return WIDER_TYPES.get(dtype, dtype)
