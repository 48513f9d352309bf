"""`policy:FILE`: a trained policy in a file, a perceptron in a NumPy archive.

| array | meaning |
|---|---|
| `w0, b0, w1, b1, …` | weights float[out, in] and biases of the layers |
| `act` | activation between them: `relu` or `tanh` |
| `out` | `tanh` squashes actions to [-1, 1], which stands for the bounds of the environment; `clip` clips to them |
| `log_std` | optional: logarithm of the standard deviation of Gaussian noise, float[action_dim] |
| `log_std_w, log_std_b` | optional: the same from the last hidden layer, clipped to [-20, 2] |
| `obs_mean, obs_var, obs_eps, obs_clip` | optional: observations become clip((obs - mean) / sqrt(var + eps), ±clip) |

Noise is added before `out`. An input that is one wider than the observation takes `1 - step / episode_steps` as its
last entry.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffplan.behaviors.draws import BlockDraws
from diffplan.errors import ConfigError
from diffplan.tasks.contracts import BehaviorContext

PREFIX = "policy:"
LOG_STD_RANGE = (-20.0, 2.0)


class PolicyFileBehavior:
    """Acts by a perceptron.

    Args:
        arrays: as the module says.
        context: of the collection.

    Raises:
        ConfigError: arrays are missing, or do not fit one another or the environment.
    """

    def __init__(self, arrays: dict[str, np.ndarray], context: BehaviorContext, where: str = "policy") -> None:
        self._arrays = arrays
        self._where = where
        self._low, self._high = context.action_low, context.action_high
        self._episode_steps = context.max_goal_steps
        num_layers = sum(name[0] == "w" and name[1:].isdigit() for name in arrays)
        try:
            self._layers = [
                (arrays[f"w{i}"].astype(np.float64), arrays[f"b{i}"].astype(np.float64)) for i in range(num_layers)
            ]
            self._activation, self._out = str(arrays["act"]), str(arrays["out"])
        except KeyError as error:
            raise ConfigError(f"{where}: expected an array {error.args[0]}, got none; see docs/collection.md") from None
        if not self._layers or self._activation not in ("relu", "tanh") or self._out not in ("tanh", "clip"):
            raise ConfigError(
                f"{where}: expected layers w0, b0, …, act relu or tanh, and out tanh or clip, got {num_layers} layers, "
                f"act {self._activation} and out {self._out}"
            )
        sizes = [self._layers[0][0].shape[1], *(weight.shape[0] for weight, _ in self._layers)]
        if any(
            weight.shape != (after, before) or bias.shape != (after,)
            for (weight, bias), before, after in zip(self._layers, sizes[:-1], sizes[1:], strict=True)
        ):
            raise ConfigError(
                f"{where}: expected layers that fit one another, got {[w.shape for w, _ in self._layers]}"
            )
        if sizes[-1] != len(self._low):
            raise ConfigError(f"{where}: expected {len(self._low)} actions, as the environment has, got {sizes[-1]}")
        if self._out == "tanh" and not (np.isfinite(self._low).all() and np.isfinite(self._high).all()):
            raise ConfigError(f"{where}: expected an environment with bounded actions for out tanh, got unbounded ones")

    @classmethod
    def load(cls, path: str, context: BehaviorContext) -> PolicyFileBehavior:
        """A behavior from a file; raises `ConfigError` if there is none, or something else in it."""
        try:
            with np.load(Path(path), allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise ConfigError(f"collection.behavior: expected a policy in {path} (.npz), got none ({error})") from None
        return cls(arrays, context, path)

    def reset(self, observations: np.ndarray, generators: Sequence[np.random.Generator]) -> None:
        """Start episodes; raises `ConfigError` if observations are not of the size that the policy takes."""
        width = self._layers[0][0].shape[1]
        if width - observations.shape[1] not in (0, 1):
            raise ConfigError(
                f"{self._where}: expected observations of {width} or {width - 1} numbers, got {observations.shape[1]}"
            )
        self._steps = 0
        self._noise = BlockDraws(generators, lambda generator, shape: generator.standard_normal(shape), len(self._low))

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Actions within their bounds, float32[num_envs, action_dim]."""
        arrays = self._arrays
        x = np.asarray(observations, dtype=np.float64)
        if self._layers[0][0].shape[1] > x.shape[1]:
            left = 1 - self._steps / self._episode_steps
            x = np.concatenate([x, np.full((len(x), 1), left)], axis=1)
        if "obs_mean" in arrays:
            x = (x - arrays["obs_mean"]) / np.sqrt(arrays["obs_var"] + arrays.get("obs_eps", np.float64(1e-8)))
            if "obs_clip" in arrays:
                x = np.clip(x, -arrays["obs_clip"], arrays["obs_clip"])
        for weight, bias in self._layers[:-1]:
            x = x @ weight.T + bias
            x = np.tanh(x) if self._activation == "tanh" else np.maximum(x, 0.0)
        weight, bias = self._layers[-1]
        hidden, x = x, x @ weight.T + bias
        if "log_std_w" in arrays:
            log_std = np.clip(hidden @ arrays["log_std_w"].T + arrays["log_std_b"], *LOG_STD_RANGE)
            x = x + np.exp(log_std) * self._noise.next()
        elif "log_std" in arrays:
            x = x + np.exp(arrays["log_std"]) * self._noise.next()
        self._steps += 1
        if self._out == "tanh":
            x = self._low + (np.tanh(x) + 1) * (self._high - self._low) / 2
        return np.clip(x, self._low, self._high).astype(np.float32)

    def columns(self) -> dict[str, np.ndarray]:
        """No further columns."""
        return {}
