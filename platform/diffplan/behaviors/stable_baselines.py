"""Policies that Stable-Baselines3 saved, from their weights alone: neither the library nor unpickling is needed.

| algorithms | keys of the weights | activation | action |
|---|---|---|---|
| PPO, A2C, TRPO | `mlp_extractor.policy_net.<i>`, `action_net`, `log_std` | tanh | clipped |
| SAC, TQC | `actor.latent_pi.<i>`, `actor.mu`, `actor.log_std` | relu | tanh |
| TD3, DDPG | `actor.mu.<i>` | relu | tanh, no noise |
| ARS | `action_net.<i>` | relu | clipped if linear, else tanh; no noise |

A zip holds `policy.pth`, which PyTorch reads with `weights_only=True`, and `data`: JSON with pickled values beside
plain ones. Only plain ones are used, such as the name of an activation that differs from the default.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffplan.files import MAX_ARRAYS_BYTES, open_file, parse_json

WEIGHTS, DATA = "policy.pth", "data"
MAX_DATA_BYTES = 64 * 2**20
MAX_MEMBERS = 10_000


def read_stable_baselines(path: str | Path) -> dict[str, np.ndarray]:
    """Arrays by the names that `diffplan.behaviors.policy_file` gives them.

    Raises:
        OSError: no regular file, or one that cannot be read.
        ValueError: a damaged zip, one that would inflate too much, or a policy that is no perceptron of observations.
    """
    try:
        with open_file(path) as file, zipfile.ZipFile(file) as archive:
            _check_sizes(archive)
            names = archive.namelist()
            if WEIGHTS not in names:
                raise ValueError(f"expected a zip of Stable-Baselines3 with {WEIGHTS}, got {', '.join(names[:5])}")
            data = parse_json(_read_member(archive, DATA, MAX_DATA_BYTES)) if DATA in names else {}
            weights = _load_weights(_read_member(archive, WEIGHTS, MAX_ARRAYS_BYTES))
        return _make_arrays(weights, data if isinstance(data, dict) else {})
    except (OSError, ValueError):
        raise
    except Exception as error:  # zipfile, zlib and PyTorch raise almost anything for damaged files
        raise ValueError(f"{type(error).__name__}: {error}") from None


def _check_sizes(archive: zipfile.ZipFile) -> None:
    members = archive.infolist()
    num_bytes = sum(member.file_size for member in members)
    if len(members) > MAX_MEMBERS or num_bytes > MAX_ARRAYS_BYTES:
        raise ValueError(
            f"expected at most {MAX_MEMBERS} members and {MAX_ARRAYS_BYTES} bytes, got {len(members)} and {num_bytes}"
        )
    if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members):
        raise ValueError("expected members that are stored or deflated, got another compression")


def _read_member(archive: zipfile.ZipFile, name: str, max_bytes: int) -> bytes:
    """A member, never more of it than its record says, or an error."""
    size = archive.getinfo(name).file_size
    if size > max_bytes:
        raise ValueError(f"{name}: expected at most {max_bytes} bytes, got {size}")
    return archive.read(name)


def _load_weights(content: bytes) -> dict[str, np.ndarray]:
    import torch  # late: it costs a second that other policies need not pay

    file = io.BytesIO(content)
    if not zipfile.is_zipfile(file):  # the older format tells no sizes before it is read
        raise ValueError(f"{WEIGHTS}: expected the format of PyTorch 1.6 or later, got another")
    with zipfile.ZipFile(file) as archive:
        _check_sizes(archive)
    file.seek(0)
    state = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{WEIGHTS}: expected tensors by name, got something else")
    # A tensor may say that it is larger than what it is stored in.
    if sum(tensor.numel() for tensor in state.values()) * 4 > MAX_ARRAYS_BYTES:
        raise ValueError(f"{WEIGHTS}: expected at most {MAX_ARRAYS_BYTES} bytes of numbers, got more")
    return {str(name): tensor.detach().to(torch.float64).numpy() for name, tensor in state.items()}


def _make_arrays(weights: Mapping[str, np.ndarray], data: Mapping[str, Any]) -> dict[str, np.ndarray]:
    _refuse_others(weights, data)
    settings = data.get("policy_kwargs")
    settings = settings if isinstance(settings, dict) else {}
    arrays: dict[str, np.ndarray] = {}
    activation, out = "relu", "tanh"
    if "actor.mu.weight" in weights:
        layers = [*_find_layers(weights, "actor.latent_pi"), _get_layer(weights, "actor.mu")]
        arrays["log_std_w"], arrays["log_std_b"] = _get_layer(weights, "actor.log_std")
    elif "actor.mu.0.weight" in weights:
        layers = _find_layers(weights, "actor.mu")
    elif "action_net.0.weight" in weights:
        layers = _find_layers(weights, "action_net")
        out = "tanh" if settings.get("squash_output", len(layers) > 1) else "clip"
    elif "action_net.weight" in weights:
        # Before version 1.8, first layers could be shared with the value.
        hidden = [_find_layers(weights, f"mlp_extractor.{net}") for net in ("shared_net", "policy_net")]
        layers = [*hidden[0], *hidden[1], _get_layer(weights, "action_net")]
        activation, out = "tanh", "clip"
        if "log_std" in weights:
            arrays["log_std"] = weights["log_std"]
        elif "value_net.weight" in weights:
            raise ValueError("expected a policy of continuous actions, got one of discrete ones")
    else:
        raise ValueError(
            f"expected weights of PPO, A2C, TRPO, SAC, TQC, TD3, DDPG or ARS, got {', '.join([*weights][:3]) or 'none'}"
        )
    for i, (weight, bias) in enumerate(layers):
        arrays[f"w{i}"], arrays[f"b{i}"] = weight, bias
    arrays["act"], arrays["out"] = np.array(_name_activation(settings) or activation), np.array(out)
    return arrays


def _refuse_others(weights: Mapping[str, np.ndarray], data: Mapping[str, Any]) -> None:
    """Raise `ValueError` for policies with the same keys that act in another way."""
    for name in weights:
        if "features_extractor." in name or "lstm" in name:
            raise ValueError(f"expected a perceptron of observations, got other layers too ({name})")
    on_policy = weights.get("log_std")
    if data.get("use_sde") is True or "actor.log_std" in weights or (on_policy is not None and on_policy.ndim != 1):
        raise ValueError("expected Gaussian noise, got state-dependent exploration (use_sde)")


def _find_layers(weights: Mapping[str, np.ndarray], prefix: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights and biases of the linear layers of a sequence, in their order."""
    indices = set()
    for name in weights:
        if name.startswith(f"{prefix}."):
            matched = re.fullmatch(r"(\d{1,6})\.(weight|bias)", name.removeprefix(f"{prefix}."), re.ASCII)
            if matched is None:
                raise ValueError(f"expected linear layers only, got {name}")
            indices.add(int(matched[1]))
    return [_get_layer(weights, f"{prefix}.{index}") for index in sorted(indices)]


def _get_layer(weights: Mapping[str, np.ndarray], prefix: str) -> tuple[np.ndarray, np.ndarray]:
    weight = weights.get(f"{prefix}.weight")
    if weight is None or weight.ndim != 2:
        raise ValueError(f"{prefix}.weight: expected a linear layer, got {'none' if weight is None else weight.shape}")
    return weight, weights.get(f"{prefix}.bias", np.zeros(len(weight)))


def _name_activation(settings: Mapping[str, Any]) -> str | None:
    """The activation that was asked for, such as `relu` for `<class 'torch.nn.modules.activation.ReLU'>`."""
    matched = re.search(r"(\w+)'>$", str(settings.get("activation_fn", "")))
    return matched[1].lower() if matched else None
