"""`policy:FILE`: a trained policy in a file.

A file is a perceptron in a NumPy archive, in safetensors or in a zip of Stable-Baselines3; `policy:DIR` is a policy
that `diffplan baseline train` wrote. `policy_options` says what may stand behind `?`. Arrays of a perceptron:

| array | meaning |
|---|---|
| `w0, b0, w1, b1, …` | weights float[out, in] and biases of the layers; the last one gives the actions |
| `act` | activation between them: `relu` or `tanh` |
| `out` | `tanh` squashes actions to [-1, 1], which stands for the bounds of the environment; `clip` clips to them |
| `log_std` | optional: logarithm of the standard deviation of Gaussian noise, float[action_dim] |
| `log_std_w, log_std_b` | optional: the same from the last hidden layer, clipped to [-20, 2] |
| `obs_mean, obs_var` | optional: inputs become (input - mean) / sqrt(var + eps) |
| `obs_eps, obs_clip` | optional: eps (1e-8 if not given), and what these inputs are clipped to, ±clip |

In safetensors, `act` and `out` are metadata, and single numbers may be. Noise is added before `out`. Where `w0` is one
wider than observations, `1 - step / episode_steps` is the last input.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffplan.behaviors.draws import BlockDraws
from diffplan.behaviors.imported import FIELD
from diffplan.behaviors.policy_content import find_policy_file
from diffplan.behaviors.policy_formats import read_policy_arrays
from diffplan.behaviors.policy_options import ACTIVATIONS, PolicyOptions, split_policy
from diffplan.behaviors.varied_policy import VariedPolicy
from diffplan.errors import ConfigError, describe_error
from diffplan.tasks.contracts import Behavior, BehaviorContext
from diffplan.tasks.registry import task_of

LOG_STD_RANGE = (-20.0, 2.0)
DEFAULT_EPSILON = 1e-8
_OPTIONAL = ("log_std", "obs_eps", "obs_clip")
_NORM = ("obs_mean", "obs_var", "obs_eps", "obs_clip")


def make_policy(name: str, context: BehaviorContext) -> Behavior:
    """The behavior of `policy:FILE`, `policy:DIR`, or one of them with options.

    Raises:
        ConfigError: no policy there, one that does not fit the environment, or wrong options.
    """
    given, options = split_policy(name)
    path = find_policy_file(given, task_of(context.env))
    if Path(path).is_dir():
        from diffplan.behaviors.trained_policy import TrainedPolicy  # late: PyTorch costs a second

        policy: Behavior = TrainedPolicy.load(path, context, options)
    else:
        policy = PolicyFileBehavior.load(path, context, options)
    return VariedPolicy(policy, options, context, f"{FIELD}: {name}") if options.varies else policy


class PolicyFileBehavior:
    """Acts by a perceptron.

    Args:
        arrays: as the module says.
        context: of the collection.

    Raises:
        ConfigError: arrays are missing, or do not fit one another or the environment.
    """

    def __init__(self, arrays: dict[str, np.ndarray], context: BehaviorContext, where: str = FIELD) -> None:
        self._where = where
        self._low, self._high = context.action_low, context.action_high
        self._episode_steps = context.max_goal_steps
        num_layers = sum(name[0] == "w" and name[1:].isdigit() for name in arrays)
        names = [f"{kind}{i}" for i in range(num_layers) for kind in "wb"]
        for both in (("log_std_w", "log_std_b"), ("obs_mean", "obs_var")):
            names += both if set(both) & set(arrays) else ()
        for name in ("w0", *names, "act", "out"):
            if name not in arrays:
                raise ConfigError(f"{where}: expected an array {name}, got none; see docs/tasks.md")
        self._activation, self._out = str(arrays["act"]), str(arrays["out"])
        if self._activation not in ACTIVATIONS or self._out not in ("tanh", "clip"):
            raise ConfigError(
                f"{where}: expected act relu or tanh, and out tanh or clip, got act {self._activation} and out "
                f"{self._out}"
            )
        self._arrays = {name: self._to_numbers(name, arrays[name]) for name in sorted({*names, *_OPTIONAL} & {*arrays})}
        self._layers = [(self._arrays[f"w{i}"], self._arrays[f"b{i}"]) for i in range(num_layers)]
        self._check_shapes()
        if self._out == "tanh" and not (np.isfinite(self._low).all() and np.isfinite(self._high).all()):
            raise ConfigError(f"{where}: expected an environment with bounded actions for out tanh, got unbounded ones")

    def _to_numbers(self, name: str, array: np.ndarray) -> np.ndarray:
        if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise ConfigError(f"{self._where}: {name}: expected finite numbers, got something else")
        return array.astype(np.float64)

    def _check_shapes(self) -> None:
        """Raise `ConfigError` unless the arrays fit one another and the actions of the environment."""
        for i, (weight, _) in enumerate(self._layers):
            if weight.ndim != 2:
                raise ConfigError(f"{self._where}: w{i}: expected float[out, in], got shape {weight.shape}")
        hidden = before = self._width = self._layers[0][0].shape[1]
        action_dim = len(self._low)
        expected: dict[str, tuple[int, ...]] = {}
        for i, (weight, _) in enumerate(self._layers):
            after = weight.shape[0] if i + 1 < len(self._layers) else action_dim
            expected |= {f"w{i}": (after, before), f"b{i}": (after,)}
            hidden, before = before, after
        expected |= {"log_std": (action_dim,), "log_std_w": (action_dim, hidden), "log_std_b": (action_dim,)}
        expected |= {"obs_mean": (self._width,), "obs_var": (self._width,), "obs_eps": (), "obs_clip": ()}
        for name, shape in expected.items():
            if name in self._arrays and self._arrays[name].shape != shape:
                raise ConfigError(
                    f"{self._where}: {name}: expected shape {shape}, for {action_dim} actions and the layers before "
                    f"it, got {self._arrays[name].shape}"
                )

    @classmethod
    def load(cls, path: str, context: BehaviorContext, options: PolicyOptions | None = None) -> PolicyFileBehavior:
        """A behavior from a file; raises `ConfigError` if there is none, or something else in it.

        Args:
            path: of the file.
            context: of the collection.
            options: `deterministic`, `activation` and `norm` are used.
        """
        options = options or PolicyOptions()
        arrays = _read(path, "a policy")
        if options.norm is not None:
            arrays = _add_norm(arrays, options.norm, path)
        if options.activation is not None:
            arrays["act"] = np.array(options.activation)
        if options.deterministic:
            arrays = {name: array for name, array in arrays.items() if not name.startswith("log_std")}
        return cls(arrays, context, f"{FIELD}: {path}")

    def reset(self, observations: np.ndarray, generators: Sequence[np.random.Generator]) -> None:
        """Start episodes; raises `ConfigError` if observations are not of the size that the policy takes."""
        if self._width - observations.shape[1] not in (0, 1):
            raise ConfigError(
                f"{self._where}: w0: expected to be as wide as the observations ({observations.shape[1]}), or one "
                f"wider, got {self._width}"
            )
        self._steps = 0
        self._noise = BlockDraws(generators, lambda generator, shape: generator.standard_normal(shape), len(self._low))

    def act(self, observations: np.ndarray) -> np.ndarray:
        """Actions within their bounds, float32[num_envs, action_dim]."""
        arrays = self._arrays
        x = np.asarray(observations, dtype=np.float64)
        if self._width > x.shape[1]:
            left = 1 - self._steps / self._episode_steps
            x = np.concatenate([x, np.full((len(x), 1), left)], axis=1)
        if "obs_mean" in arrays:
            x = (x - arrays["obs_mean"]) / np.sqrt(arrays["obs_var"] + arrays.get("obs_eps", DEFAULT_EPSILON))
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


def _read(path: str, what: str) -> dict[str, np.ndarray]:
    try:
        return read_policy_arrays(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{FIELD}: expected {what} in {path}, got none ({describe_error(error)})") from None


def _add_norm(arrays: dict[str, np.ndarray], norm: str, path: str) -> dict[str, np.ndarray]:
    """Arrays of a policy with the statistics of another file; raises `ConfigError` where there are some already."""
    found = {name: array for name, array in _read(norm, "statistics of observations").items() if name in _NORM}
    if "obs_mean" not in found or "obs_var" not in found:
        raise ConfigError(f"{FIELD}: {norm}: expected arrays obs_mean and obs_var, got {', '.join(found) or 'neither'}")
    if any(name in arrays for name in _NORM):
        raise ConfigError(f"{FIELD}: {path}: expected no norm beside the obs_mean and obs_var of the policy itself")
    return arrays | found
