"""Arrays of trained policies, from NumPy archives, safetensors and zips of Stable-Baselines3; nothing is unpickled."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from diffplan.behaviors.stable_baselines import read_stable_baselines
from diffplan.files import MAX_ARRAYS_BYTES, parse_json, read_arrays, read_file

if TYPE_CHECKING:
    import torch

_IN_METADATA = ("act", "out", "obs_eps", "obs_clip")
"""What safetensors may have as text beside its tensors."""
_SCALARS = ("obs_eps", "obs_clip")


def read_policy_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Arrays by the names that `diffplan.behaviors.policy_file` gives them.

    Args:
        path: `.safetensors`, `.zip` of Stable-Baselines3, or else a NumPy archive.

    Raises:
        OSError: no regular file, or one that cannot be read.
        ValueError: a damaged file, a file too large, or a policy of another kind.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".safetensors":
        return _read_safetensors(path)
    if suffix == ".zip":
        return read_stable_baselines(path)
    return read_arrays(path)


def _read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    from safetensors.torch import load  # late: PyTorch costs a second that archives need not pay

    content = read_file(path, max_bytes=MAX_ARRAYS_BYTES)
    try:
        tensors = load(content)
    except Exception as error:  # whatever safetensors raises
        raise ValueError(f"{type(error).__name__}: {error}") from None
    arrays = {name: _to_array(tensor) for name, tensor in tensors.items()}
    header = parse_json(content[8 : 8 + int.from_bytes(content[:8], "little")])
    for name, text in header.get("__metadata__", {}).items():
        if name in _IN_METADATA and name not in arrays:
            arrays[name] = np.array(float(text) if name in _SCALARS else text)
    for name in set(_SCALARS) & set(arrays):  # tensors of one number, for tools that have none without dimensions
        arrays[name] = arrays[name].reshape(()) if arrays[name].size == 1 else arrays[name]
    return arrays


def _to_array(tensor: torch.Tensor) -> np.ndarray:
    """A tensor as an array; NumPy has no floating-point numbers of 16 bits with a long exponent, nor of 8."""
    return (tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor).numpy()
