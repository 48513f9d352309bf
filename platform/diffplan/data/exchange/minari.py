"""Lossless import of Minari datasets; `export_minari` is the inverse."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from diffplan.config import EnvConfig, config_from_dict, config_to_dict
from diffplan.data.exchange.minari_export import EPISODE_RECORD, RECORD, export_minari
from diffplan.data.exchange.minari_layout import Layout, flatten_tree, infer_layout
from diffplan.data.exchange.minari_reading import MinariSource, open_minari, read_episodes
from diffplan.data.exchange.unit_import import OnProgress, import_units
from diffplan.data.format.dataset import TrajectoryDataset
from diffplan.data.format.manifest import Manifest, new_dataset_uuid
from diffplan.errors import ConfigError, DataError
from diffplan.files import parse_json
from diffplan.tasks.registry import fill_roles, find_frame
from diffplan.types import Episode

NOT_KEPT = ("observation_space", "action_space", "env_spec", "dataset_id", RECORD)
"""Entries of Minari's metadata that have their own place in the manifest."""


def import_minari(
    source: str | Path,
    out: str | Path,
    *,
    env: EnvConfig | None = None,
    frame: str | None = None,
    float32: bool = False,
    skip_infos: bool = False,
    episodes_per_unit: int = 64,
    on_progress: OnProgress | None = None,
) -> TrajectoryDataset:
    """Import a Minari dataset.

    Every array keeps its type and its values; see `diffplan.data.exchange.minari_layout` for the columns.
    Episodes keep their seeds and options; the manifest keeps the spaces, the environment's spec and all metadata. An
    interrupted import continues when it is run again; a finished one is only opened.

    Args:
        source: directory of the dataset, or its id; nothing is downloaded.
        out: directory or URL of the new dataset.
        env: environment that replaces the one of the dataset.
        frame: a change of coordinates of a task (`Task.frames`), so that planners trained on the data run in
            environments of that task.
        float32: store float64 as float32.
        skip_infos: leave infos out.
        episodes_per_unit: episodes in one unit, which becomes one shard.
        on_progress: called with the number of episodes done and their total.

    Raises:
        DataError: no Minari dataset, values that cannot be stored, non-finite numbers in observations, actions or
            rewards, an episode that ends before its last step, or another dataset in `out`.
    """
    opened = open_minari(source)
    importer = _Importer(opened, env, frame, float32, skip_infos, episodes_per_unit)
    return import_units(out, importer.manifest, opened.num_episodes, episodes_per_unit, importer.read_unit, on_progress)


class _Importer:
    """Converts episodes of a Minari dataset to our episodes."""

    def __init__(
        self,
        source: MinariSource,
        env: EnvConfig | None,
        frame: str | None,
        float32: bool,
        skip_infos: bool,
        episodes_per_unit: int,
    ) -> None:
        self._source = source
        self._float32, self._skip_infos = float32, skip_infos
        self._record = _read_record(source)
        self._layout = self._make_layout()
        algorithm = source.metadata.get("algorithm_name")
        self._behavior = self._record.get("behavior", algorithm if isinstance(algorithm, str) else "unknown")
        env_spec = source.metadata.get("env_spec")
        self._frame = None if frame is None else find_frame(frame)(env_spec)
        if env is None:
            env = self._frame.env if self._frame else _env_of(source, self._record)
        assert env is not None
        env = fill_roles(env)
        low, high = _bounds(source.dataset.action_space)
        if len(low) != self._layout.columns[1].size:
            raise DataError(
                f"{source.path}: actions: expected {len(low)} numbers, as the action space says, got "
                f"{self._layout.columns[1].size}"
            )
        self.manifest = Manifest(
            dataset_uuid=new_dataset_uuid(),
            env=config_to_dict(env),
            columns=self._layout.columns,
            action_low=low,
            action_high=high,
            source={
                "kind": "minari",
                "dataset_id": source.dataset_id,
                "fingerprint": source.fingerprint(),
                "float32": float32,
                "skip_infos": skip_infos,
                "episodes_per_unit": episodes_per_unit,
                "metadata": to_json_values({k: v for k, v in source.metadata.items() if k not in NOT_KEPT}),
                "origin": self._record.get("origin"),
                "leaves": self._layout.to_dict()["leaves"],
            },
            spaces=_serialize_spaces(source),
            env_spec=env_spec,
        )
        if self._frame is not None:
            self.manifest = self._frame.map_manifest(self.manifest)

    def read_unit(self, indices: range) -> list[Episode]:
        return [
            self._to_episode(index, tree, metadata)
            for index, (tree, metadata) in zip(indices, read_episodes(self._source, indices), strict=True)
        ]

    def _make_layout(self) -> Layout:
        try:
            if "layout" in self._record:
                layout = Layout.from_dict(self._record["layout"])
                layout = layout.without_infos() if self._skip_infos else layout
                return layout.with_float32() if self._float32 else layout
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{self._source.path}: metadata.json: {RECORD}: no layout of columns ({error})") from None
        tree, _ = next(read_episodes(self._source, [0]))
        length = _length(tree, self._where(0))
        arrays = flatten_tree(tree, length, self._where(0), skip_infos=self._skip_infos)
        layout = infer_layout(arrays, length, self._where(0))
        return layout.with_float32() if self._float32 else layout

    def _to_episode(self, index: int, tree: dict[str, Any], metadata: dict[str, Any]) -> Episode:
        where = self._where(index)
        length = _length(tree, where)
        arrays = flatten_tree(tree, length, where, skip_infos=self._skip_infos)
        if self._float32:
            arrays = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in arrays.items()}
        columns = self._layout.to_columns(arrays, length, where)
        try:
            record = parse_json(metadata.get(EPISODE_RECORD) or "{}")
            seed = metadata.get("seed")
            episode = Episode(
                episode_index=int(record.get("episode_index", index)),
                seed=None if seed is None else int(seed),
                behavior=str(record.get("behavior", self._behavior)),
                observations=columns.pop("observation"),
                actions=columns.pop("action"),
                rewards=columns.pop("reward"),
                terminated=_flag(tree, "terminations", length, where),
                truncated=_flag(tree, "truncations", length, where),
                columns=columns,
                task=int(record.get("task", 0)),
                options=record["options"] if "options" in record else to_json_values(metadata.get("options")),
            )
        except (TypeError, ValueError, AttributeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{where}: seed or options cannot be stored ({error})") from None
        if episode.seed is not None and not -(2**63) <= episode.seed < 2**63:
            raise DataError(f"{where}: seed: expected a number below 2**63, got {episode.seed}")
        return episode if self._frame is None else self._frame.map_episode(episode)

    def _where(self, index: int) -> str:
        return f"{self._source.path}: episode {index}"


def to_json_values(value: Any) -> Any:
    """Plain JSON values from those of Minari's metadata.

    Arrays become lists, non-finite numbers become text, and names are sorted, because storage formats differ in
    their order.

    Raises:
        TypeError: a value that JSON cannot represent.
    """
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(name): to_json_values(inner) for name, inner in sorted(value.items())}
    if isinstance(value, list | tuple | set):
        return [to_json_values(inner) for inner in value]
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"{type(value).__name__} is no JSON value")


def _read_record(source: MinariSource) -> dict[str, Any]:
    """The record of `export_minari` in the metadata; empty for other datasets."""
    record = source.metadata.get(RECORD, {})
    if not isinstance(record, dict):
        raise DataError(f"{source.path}: metadata.json: {RECORD}: expected an object, got {type(record).__name__}")
    return record


def _env_of(source: MinariSource, record: dict[str, Any]) -> EnvConfig:
    try:
        if "env" in record:
            return config_from_dict(EnvConfig, record["env"])
        spec = parse_json(source.metadata.get("env_spec") or "{}")
        return EnvConfig(env_id=spec["id"], env_kwargs=to_json_values(spec.get("kwargs", {})))
    except (KeyError, TypeError, ValueError, ConfigError):
        raise DataError(
            f"{source.path}: it does not say which environment it is of; name it with --env.env_id"
        ) from None


def _bounds(space: Any) -> tuple[list[float | None], list[float | None]]:
    """Bounds of each action entry; None if unbounded."""
    from gymnasium import spaces

    if isinstance(space, spaces.Box):
        low, high = space.low, space.high
    elif isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        low = np.asarray(space.start)
        high = low + (space.n if isinstance(space, spaces.Discrete) else space.nvec) - 1
    elif isinstance(space, spaces.MultiBinary):
        low, high = np.zeros(space.shape), np.ones(space.shape)
    else:
        raise DataError(f"actions: expected a Box, Discrete, MultiDiscrete or MultiBinary space, got {space}")

    def listed(values: np.ndarray) -> list[float | None]:
        return [float(v) if np.isfinite(v) else None for v in np.ravel(values)]

    return listed(low), listed(high)


def _serialize_spaces(source: MinariSource) -> dict[str, Any]:
    from minari.serialization import serialize_space

    spaces = {"observation": source.dataset.observation_space, "action": source.dataset.action_space}
    return {name: serialize_space(space) for name, space in spaces.items()}


def _length(tree: dict[str, Any], where: str) -> int:
    rewards = tree["rewards"]
    if not isinstance(rewards, np.ndarray) or rewards.ndim != 1 or len(rewards) == 0:
        got = f"shape {rewards.shape}" if isinstance(rewards, np.ndarray) else "no array"
        raise DataError(f"{where}: rewards: expected one number for each of at least 1 step, got {got}")
    return len(rewards)


def _flag(tree: dict[str, Any], name: str, length: int, where: str) -> bool:
    """Whether an episode ends this way; raises `DataError` if it does so before its last step."""
    values = np.asarray(tree[name]).astype(bool)
    if values.shape != (length,):
        raise DataError(f"{where}: {name}: expected shape {(length,)}, got {values.shape}")
    if values[:-1].any():
        raise DataError(
            f"{where}: {name}: expected an end at the last step only, got one at step {int(values.argmax())} of "
            f"{length}; split the episode there"
        )
    return bool(values[-1])


__all__ = ["export_minari", "import_minari"]
