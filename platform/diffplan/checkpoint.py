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
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import uuid
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from diffplan.config import Config, config_from_dict, config_to_dict
from diffplan.data.normalization import Normalizer
from diffplan.errors import CheckpointError, ConfigError
from diffplan.layout import Layout

FORMAT_VERSION = 1
CONFIG, MODEL, NORMALIZATION, DATASET, TRAINING_STATE = (
    "config.json",
    "model.safetensors",
    "normalization.json",
    "dataset.json",
    "training_state.pt",
)


@dataclass(frozen=True)
class Checkpoint:
    """What planning needs of a checkpoint.

    Attributes:
        path: its directory.
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
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CONFIG).unlink(missing_ok=True)
    save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, directory / MODEL)
    (directory / NORMALIZATION).write_text(normalizer.to_json())
    (directory / DATASET).write_text(json.dumps(dataset, indent=2) + "\n")
    torch.save(training_state, directory / TRAINING_STATE)
    files = {name: _describe(directory / name) for name in (MODEL, NORMALIZATION, DATASET, TRAINING_STATE)}
    record = {
        "format_version": FORMAT_VERSION,
        "step": step,
        "observation_dim": layout.observation_dim,
        "action_dim": layout.action_dim,
        "return_range": None if return_range is None else list(return_range),
        "files": files,
        "config": config_to_dict(config),
    }
    _write_record(directory, record)


def save_companion(path: str | Path, name: str, tensors: dict[str, torch.Tensor], settings: dict[str, Any]) -> None:
    """Add a small model to a whole checkpoint, or replace the one of that name.

    Args:
        path: the checkpoint.
        name: of the companion.
        tensors: its weights.
        settings: what else is needed to make it, as JSON values.

    Raises:
        CheckpointError: no checkpoint there.
    """
    directory = Path(path)
    record = _read_record(directory)
    file_name = f"{name}.safetensors"
    temporary = directory / f".tmp-{uuid.uuid4().hex}"
    values = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    save_file(values, temporary, metadata={"settings": json.dumps(settings)})
    described = _describe(temporary)
    others = {key: value for key, value in record["files"].items() if key != file_name}
    if file_name in record["files"]:
        # Cut short between file and record, the checkpoint has none of that name rather than a wrong one.
        _write_record(directory, {**record, "files": others})
    temporary.rename(directory / file_name)
    _write_record(directory, {**record, "files": {**others, file_name: described}})


def load_companion(path: str | Path, name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """Weights and settings of a companion; None where the checkpoint has none of that name.

    Raises:
        CheckpointError: no checkpoint there, or the companion is damaged.
    """
    directory, file_name = Path(path), f"{name}.safetensors"
    record = _read_record(directory)
    if file_name not in record["files"]:
        return None
    file = _checked(directory, record, file_name)
    try:
        with safe_open(file, framework="pt") as opened:
            settings = json.loads(opened.metadata()["settings"])
            return {key: opened.get_tensor(key) for key in opened.keys()}, settings  # noqa: SIM118  (no mapping)
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{file}: expected a companion model ({error}); run `diffplan calibrate` again") from None


def _describe(path: Path) -> dict[str, int]:
    content = path.read_bytes()
    return {"num_bytes": len(content), "crc32": zlib.crc32(content)}


def _write_record(directory: Path, record: dict[str, Any]) -> None:
    temporary = directory / f".tmp-{uuid.uuid4().hex}"
    with temporary.open("w") as file:
        file.write(json.dumps(record, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(directory / CONFIG)


def load_checkpoint(path: str | Path, *, map_location: str = "cpu") -> Checkpoint:
    """Load what planning needs.

    Raises:
        CheckpointError: no checkpoint there, or a file is missing, truncated or changed.
    """
    directory = Path(path)
    record = _read_record(directory)
    try:
        config = config_from_dict(Config, record["config"])
        layout = Layout(record["observation_dim"], record["action_dim"])
        weights = load_file(_checked(directory, record, MODEL), device=map_location)
        dataset = json.loads(_checked(directory, record, DATASET).read_text())
        normalizer = Normalizer.from_json(_checked(directory, record, NORMALIZATION).read_text())
        return_range = record.get("return_range")
        return Checkpoint(
            directory,
            config,
            layout,
            record["step"],
            normalizer,
            weights,
            dataset,
            None if return_range is None else (float(return_range[0]), float(return_range[1])),
        )
    except (KeyError, TypeError, ValueError, ConfigError, SafetensorError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{directory}: the checkpoint cannot be read ({error}); train it again") from None


def load_training_state(path: str | Path) -> dict[str, Any]:
    """Load what going on training needs; raises `CheckpointError` as `load_checkpoint` does."""
    directory = Path(path)
    record = _read_record(directory)
    try:
        return torch.load(_checked(directory, record, TRAINING_STATE), map_location="cpu", weights_only=True)
    except (LookupError, TypeError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        first = str(error).splitlines()[0]
        raise CheckpointError(f"{directory / TRAINING_STATE}: expected a training state ({first})") from None


def is_checkpoint(path: Path) -> bool:
    """Whether a directory holds a whole checkpoint."""
    try:
        record = _read_record(path)
        for name in record["files"]:
            _checked(path, record, name)
    except (CheckpointError, KeyError, TypeError):
        return False
    return True


def publish_checkpoint(source: Path, target: Path) -> None:
    """Copy a checkpoint to where users look for it, replacing the one there; `config.json` last.

    Raises:
        CheckpointError: the source is no whole checkpoint; the target is left as it was.
    """
    record = _read_record(source)
    for name in record["files"]:
        _checked(source, record, name)
    target.mkdir(parents=True, exist_ok=True)
    (target / CONFIG).unlink(missing_ok=True)
    for name in [*record["files"], CONFIG]:
        temporary = target / f".tmp-{uuid.uuid4().hex}"
        shutil.copyfile(source / name, temporary)
        temporary.rename(target / name)


def _read_record(directory: Path) -> dict[str, Any]:
    path = directory / CONFIG
    try:
        record = json.loads(path.read_text())
        version = record["format_version"]
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            f"{directory}: expected a checkpoint (no {CONFIG} there); make one with `diffplan train`"
        ) from None
    except (ValueError, KeyError, TypeError, UnicodeDecodeError):
        raise CheckpointError(f"{path}: expected the description of a checkpoint, got something else") from None
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{path}: expected checkpoint version {FORMAT_VERSION}, got {version}")
    return record


def _checked(directory: Path, record: dict[str, Any], name: str) -> Path:
    """Path of a file after its size and checksum were compared with the record."""
    path, expected = directory / name, record["files"][name]
    if not path.is_file():
        raise CheckpointError(f"{path}: the file is missing; copy the whole checkpoint again or train it again")
    content = path.read_bytes()
    if len(content) != expected["num_bytes"]:
        raise CheckpointError(
            f"{path}: expected {expected['num_bytes']} bytes, got {len(content)}; the file is truncated or was "
            "changed: copy the whole checkpoint again or train it again"
        )
    if zlib.crc32(content) != expected["crc32"]:
        raise CheckpointError(f"{path}: its checksum does not match; copy the whole checkpoint again or train it again")
    return path
