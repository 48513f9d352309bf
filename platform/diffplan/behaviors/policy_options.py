"""Options of a policy in a file: what stands behind `?` in `policy:sac.zip?deterministic&noise=0.1&scale=0.3..1`."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from diffplan.behaviors.imported import FIELD
from diffplan.errors import ConfigError, show_value, unknown_name

PREFIX = "policy:"
ACTIVATIONS = ("relu", "tanh")
MAX_COUNT = 10**9


@dataclass(frozen=True)
class PolicyOptions:
    """How a policy acts while data are collected.

    Attributes:
        deterministic: the policy adds no noise of its own.
        noise: standard deviation of Gaussian noise that is added to actions, in halves of the action range.
        scale: bounds of the factor that actions are multiplied by, drawn for each episode; None for no factor.
        scale_steps: mean steps after which the factor is drawn again; None: once for each episode.
        skip: first observation columns that the policy does not see.
        activation: activation between the layers, in place of the one that the file gives.
        norm: file with `obs_mean` and `obs_var`, and perhaps `obs_eps` and `obs_clip`.
    """

    deterministic: bool = False
    noise: float = 0.0
    scale: tuple[float, float] | None = None
    scale_steps: int | None = None
    skip: int = 0
    activation: str | None = None
    norm: str | None = None

    @property
    def varies(self) -> bool:
        """Whether anything stands between the policy and the environment."""
        return bool(self.noise or self.scale or self.skip)


_SHAPES = {
    "noise": "noise=S with a number of at least 0, such as noise=0.1",
    "scale": "scale=A or scale=A..B with numbers 0 <= A <= B, such as scale=0.3..1",
    "scale_steps": "scale_steps=N with a whole number of at least 1, such as scale_steps=100",
    "skip": "skip=N with a whole number of at least 0, such as skip=1",
    "activation": f"activation=NAME with one of {', '.join(ACTIVATIONS)}",
    "norm": "norm=FILE, such as norm=statistics.npz",
}


def split_policy(name: str) -> tuple[str, PolicyOptions]:
    """The path and the options of `policy:FILE` or `policy:FILE?OPTION&OPTION…`.

    Raises:
        ConfigError: an option is unknown, malformed or given twice.
    """
    path, mark, text = name.removeprefix(PREFIX).partition("?")
    where = f"{FIELD}: {name}"
    values: dict[str, Any] = {}
    for part in text.split("&") if mark else ():
        option, equals, value = part.partition("=")
        if option not in (field.name for field in fields(PolicyOptions)):
            raise ConfigError(unknown_name(where, option, (field.name for field in fields(PolicyOptions))))
        if option in values:
            raise ConfigError(f"{where}: expected each option once, got {option} twice")
        if option == "deterministic":
            if equals:
                raise ConfigError(f"{where}: expected deterministic without a value, got {show_value(part)}")
            values[option] = True
            continue
        values[option] = _read_value(option, value)
        if values[option] is None:
            raise ConfigError(f"{where}: expected {_SHAPES[option]}, got {show_value(part)}")
    options = PolicyOptions(**values)
    if options.scale_steps is not None and (options.scale is None or options.scale[0] == options.scale[1]):
        raise ConfigError(f"{where}: expected scale_steps beside a range, such as scale=0.3..1, got no range")
    return path, options


def _read_value(option: str, text: str) -> Any:
    """The value of an option; None for a malformed one."""
    try:
        if option == "noise":
            noise = float(text)
            return noise if 0 <= noise < math.inf else None
        if option == "scale":
            low, dots, high = text.partition("..")
            bounds = float(low), float(high if dots else low)
            return bounds if 0 <= bounds[0] <= bounds[1] < math.inf else None
        if option in ("scale_steps", "skip"):
            count = int(text)
            return count if (option == "scale_steps") <= count <= MAX_COUNT else None
    except ValueError:
        return None
    if option == "activation":
        return text if text in ACTIVATIONS else None
    return text or None
