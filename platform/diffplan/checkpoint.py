"""Checkpoint directories.

```
config.json           the Config, the layout, the step, and size and checksum of every other file; written last
model.safetensors     weights to plan with (the moving average)
normalization.json    between environment units and model space
dataset.json          what it was trained on: path, uuid, snapshot
training_state.pt     raw weights, optimizer and step, to go on training; read with weights_only
<companion>.safetensors   a small model that was fitted to the finished one, such as the horizon model; optional
```

A directory without a `config.json`, or with files that do not match it, is not a checkpoint: one that was cut short is
never taken for whole. Loading never unpickles.

A checkpoint may lie in an object store too. What is loaded from there by its URL is copied to the local cache first
(`diffplan.data.format.cache`), where a copy is found again as long as the checkpoint stays the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save, save_file

from diffplan.config import Config, config_from_dict, config_to_dict
from diffplan.data.format.cache import cache_directory
from diffplan.data.windows.normalization import Normalizer
from diffplan.errors import CheckpointError, ConfigError, StoreError, show_value
from diffplan.files import parse_json
from diffplan.layout import Layout
from diffplan.runs.checkpoint_record import (
    CONFIG,
    DATASET,
    FORMAT_VERSION,
    MODEL,
    NORMALIZATION,
    TRAINING_STATE,
    check_part,
    describe_part,
    format_record,
    parse_record,
    read_part,
)
from diffplan.storage.opening import open_store
from diffplan.storage.store import LocalStore, Store
from diffplan.tasks.pretrained import PREFIX, find_pretrained


@dataclass(frozen=True)
class Checkpoint:
    """What planning needs of a checkpoint.

    Attributes:
        path: its directory; of one in an object store, that of the local copy.
        config: the experiment.
        layout: columns of a transition.
        step: optimizer steps taken.
        normalizer: between environment units and model space.
        weights: the averaged weights of the network.
        dataset: path, uuid and snapshot of the training data.
        return_range: returns that the network was told as 0 and as 1; None where it was told none.
    """

    path: Path
    config: Config
    layout: Layout
    step: int
    normalizer: Normalizer
    weights: dict[str, torch.Tensor]
    dataset: dict[str, Any]
    return_range: tuple[float, float] | None = None


def save_checkpoint(
    directory: Path,
    *,
    config: Config,
    layout: Layout,
    step: int,
    normalizer: Normalizer,
    weights: dict[str, torch.Tensor],
    dataset: dict[str, Any],
    training_state: dict[str, Any],
    return_range: tuple[float, float] | None = None,
) -> None:
    """Write a checkpoint into a directory, `config.json` last."""
    checkpoint = Checkpoint(directory, config, layout, step, normalizer, weights, dataset, return_range)
    _save(directory, checkpoint, training_state)


def save_planning_checkpoint(directory: Path, checkpoint: Checkpoint) -> None:
    """Write what planning needs into a directory, `config.json` last; training cannot go on from there."""
    _save(directory, checkpoint, None)


def _save(directory: Path, checkpoint: Checkpoint, training_state: dict[str, Any] | None) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG, MODEL, NORMALIZATION, DATASET, TRAINING_STATE):
        if name == CONFIG or (directory / name).is_symlink():  # or the file behind the link would be overwritten
            (directory / name).unlink(missing_ok=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in checkpoint.weights.items()}
    save_file(weights, directory / MODEL)
    (directory / NORMALIZATION).write_text(checkpoint.normalizer.to_json())
    (directory / DATASET).write_text(json.dumps(checkpoint.dataset, indent=2) + "\n")
    names = [MODEL, NORMALIZATION, DATASET]
    if training_state is not None:
        torch.save(training_state, directory / TRAINING_STATE)
        names.append(TRAINING_STATE)
    record = {
        "format_version": FORMAT_VERSION,
        "step": checkpoint.step,
        "observation_dim": checkpoint.layout.observation_dim,
        "action_dim": checkpoint.layout.action_dim,
        "return_range": None if checkpoint.return_range is None else list(checkpoint.return_range),
        "files": {name: describe_part((directory / name).read_bytes()) for name in names},
        "config": config_to_dict(checkpoint.config),
    }
    _write_record(directory, record)


def save_companion(path: str | Path, name: str, tensors: dict[str, torch.Tensor], settings: dict[str, Any]) -> None:
    """Add a small model to a whole checkpoint, or replace the one of that name.

    Args:
        path: the checkpoint, its directory or URL.
        name: of the companion.
        tensors: its weights.
        settings: what else is needed to make it, as JSON values.

    Raises:
        CheckpointError: no checkpoint there.
        StoreError: the store cannot be reached or refuses.
    """
    store = open_store(path)
    try:
        record = parse_record(store.read(CONFIG), str(path))
    except (FileNotFoundError, NotADirectoryError):
        raise _no_checkpoint(path) from None
    file_name = f"{name}.safetensors"
    values = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    content = save(values, metadata={"settings": json.dumps(settings)})
    others = {key: value for key, value in record["files"].items() if key != file_name}
    if file_name in record["files"]:
        # Cut short between file and record, the checkpoint has none of that name rather than a wrong one.
        store.replace(CONFIG, format_record({**record, "files": others}))
    store.replace(file_name, content)
    store.replace(CONFIG, format_record({**record, "files": {**others, file_name: describe_part(content)}}))


def load_companion(path: str | Path, name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """Weights and settings of a companion; None where the checkpoint has none of that name.

    Raises:
        CheckpointError: no checkpoint there, or the companion is damaged.
    """
    directory, file_name = fetch_checkpoint(path), f"{name}.safetensors"
    record = _read_record(directory)
    if file_name not in record["files"]:
        return None
    file = check_part(directory, record, file_name)
    try:
        with safe_open(file, framework="pt") as opened:
            settings = parse_json(opened.metadata()["settings"])
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118  (no mapping)
        if not isinstance(settings, dict):
            raise ValueError(f"expected settings in an object, got {show_value(settings)}")
        _require_finite(tensors)
        return tensors, settings
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{file}: expected a companion model ({error}); run `diffplan calibrate` again") from None


def _require_finite(tensors: dict[str, torch.Tensor]) -> None:
    """Raise `ValueError` for numbers that no plan could come from."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{name}: expected finite weights, got NaN or infinity")


def _write_record(directory: Path, record: dict[str, Any]) -> None:
    temporary = directory / f".tmp-{uuid.uuid4().hex}"
    with temporary.open("wb") as file:
        file.write(format_record(record))
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(directory / CONFIG)


def load_checkpoint(path: str | Path, *, map_location: str = "cpu") -> Checkpoint:
    """Load what planning needs.

    Args:
        path: directory or URL of the checkpoint.
        map_location: device of the weights.

    Raises:
        CheckpointError: no checkpoint there, or a file is missing, truncated or changed.
        StoreError: the store of a URL cannot be reached.
    """
    directory = fetch_checkpoint(path)
    record = _read_record(directory)
    try:
        config = config_from_dict(Config, record["config"])
        has_flag = config.windows.has_flag and config.training.objective in ("diffusion", "value")
        layout = Layout(record["observation_dim"], record["action_dim"], has_flag)
        weights = load_file(check_part(directory, record, MODEL), device=map_location)
        dataset = parse_json(check_part(directory, record, DATASET).read_bytes())
        normalizer = Normalizer.from_json(check_part(directory, record, NORMALIZATION).read_text())
        if not isinstance(dataset, dict):
            raise ValueError(f"{DATASET}: expected an object, got {show_value(dataset)}")
        if normalizer.center.shape != (layout.transition_dim,):
            raise ValueError(
                f"{NORMALIZATION}: expected {layout.transition_dim} columns, got {normalizer.center.shape}"
            )
        _require_finite(weights)
        return_range = record.get("return_range")
        return Checkpoint(
            directory,
            config,
            layout,
            record["step"],
            normalizer,
            {name: value.float() if value.dtype == torch.float16 else value for name, value in weights.items()},
            dataset,
            None if return_range is None else (float(return_range[0]), float(return_range[1])),
        )
    except (KeyError, TypeError, ValueError, ConfigError, SafetensorError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{directory}: the checkpoint cannot be read ({error}); train it again") from None


def load_training_state(path: str | Path) -> dict[str, Any]:
    """Load what going on training needs; raises `CheckpointError` as `load_checkpoint` does."""
    directory = fetch_checkpoint(path, training_state=True)
    record = _read_record(directory)
    if TRAINING_STATE not in record["files"]:
        raise CheckpointError(f"{path}: it is for planning alone and holds no training state; train a new one")
    try:
        return torch.load(check_part(directory, record, TRAINING_STATE), map_location="cpu", weights_only=True)
    except (LookupError, TypeError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        first = str(error).splitlines()[0]
        raise CheckpointError(f"{directory / TRAINING_STATE}: expected a training state ({first})") from None


def is_checkpoint(path: Path) -> bool:
    """Whether a directory holds a whole checkpoint."""
    try:
        record = _read_record(path)
        for name in record["files"]:
            check_part(path, record, name)
    except CheckpointError:
        return False
    return True


def publish_checkpoint(source: Path, target: Path) -> None:
    """Copy a checkpoint to where users look for it, replacing the one there; `config.json` last.

    Raises:
        CheckpointError: the source is no whole checkpoint; the target is left as it was.
    """
    record = _read_record(source)
    for name in record["files"]:
        check_part(source, record, name)
    target.mkdir(parents=True, exist_ok=True)
    (target / CONFIG).unlink(missing_ok=True)
    for name in [*record["files"], CONFIG]:
        temporary = target / f".tmp-{uuid.uuid4().hex}"
        shutil.copyfile(source / name, temporary)
        temporary.rename(target / name)


def upload_checkpoint(source: Path, store: Store, directory: str) -> None:
    """Copy a checkpoint into a directory of an object store, replacing the one there; `config.json` last.

    Raises:
        CheckpointError: the source is no whole checkpoint; the target is left as it was.
        StoreError: the store cannot be reached or refuses.
    """
    record = _read_record(source)
    contents = {name: check_part(source, record, name).read_bytes() for name in record["files"]}
    store.delete(_join(directory, CONFIG))
    for name, content in contents.items():
        store.write(_join(directory, name), [content])
    store.write(_join(directory, CONFIG), [read_part(source / CONFIG)])


def read_record(store: Store) -> dict[str, Any]:
    """The description in the root of a store; raises `CheckpointError` if there is none or it is damaged."""
    try:
        return parse_record(store.read(CONFIG), store.uri)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise _no_checkpoint(store.uri) from None


def is_uploaded(store: Store, directory: str) -> bool:
    """Whether a directory of an object store holds a whole checkpoint, as far as its listing tells."""
    try:
        record = parse_record(store.read(_join(directory, CONFIG)), store.locate(directory))
        sizes = {stored.name: stored.num_bytes for stored in store.list(directory)}
        return all(sizes.get(_join(directory, n)) == file["num_bytes"] for n, file in record["files"].items())
    except (FileNotFoundError, CheckpointError):
        return False


def fetch_checkpoint(where: str | Path, *, training_state: bool = False) -> Path:
    """The local directory of a checkpoint, which is copied into the cache if it lies in an object store.

    Args:
        where: directory or URL, or a planner that comes with a task, `pretrained:NAME`.
        training_state: whether to copy what only going on training needs.

    Raises:
        CheckpointError: no checkpoint at this URL.
        StoreError: the store cannot be reached, or the copy not be written.
    """
    if str(where).startswith(PREFIX):
        return find_pretrained(str(where).removeprefix(PREFIX))
    if "://" not in str(where):
        return Path(where)
    store = open_store(str(where))
    if isinstance(store, LocalStore):
        return store.root
    try:
        content = store.read(CONFIG)
    except FileNotFoundError:
        raise _no_checkpoint(where) from None
    record = parse_record(content, str(where))
    # The description holds the checksums of all files, so what has the same description is the same.
    target = cache_directory() / "checkpoints" / hashlib.sha256(content).hexdigest()[:32]
    try:
        for name, file in record["files"].items():
            wanted = training_state or name != TRAINING_STATE
            if wanted and not ((target / name).exists() and (target / name).stat().st_size == file["num_bytes"]):
                _write_whole(target / name, store.read(name))
        _write_whole(target / CONFIG, content)
    except FileNotFoundError as error:
        raise CheckpointError(f"{error}: the file is missing; copy the whole checkpoint again") from None
    except OSError as error:
        raise StoreError(
            f"{target}: the copy of {where} could not be written ({error.strerror or error}); make room, or set "
            "DIFFPLAN_CACHE to another directory"
        ) from error
    return target


def _write_whole(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".tmp-{uuid.uuid4().hex}"
    temporary.write_bytes(content)
    temporary.replace(path)


def _join(directory: str, name: str) -> str:
    return f"{directory}/{name}" if directory else name


def _no_checkpoint(where: str | Path) -> CheckpointError:
    return CheckpointError(f"{where}: expected a checkpoint (no {CONFIG} there); make one with `diffplan train`")


def _read_record(directory: Path) -> dict[str, Any]:
    try:
        content = read_part(directory / CONFIG)
    except (FileNotFoundError, NotADirectoryError):
        raise _no_checkpoint(directory) from None
    return parse_record(content, str(directory))
