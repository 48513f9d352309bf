"""Symmetries of an environment: each training window is one of many that are as likely."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diffplan.config import EnvConfig
from diffplan.data.windows.normalization import Normalizer
from diffplan.errors import ConfigError, unknown_name
from diffplan.importing import is_import_path, load_object
from diffplan.layout import Layout
from diffplan.tasks.contracts import Symmetry
from diffplan.tasks.registry import task_of


def find_symmetries(names: Sequence[str], env: EnvConfig) -> tuple[Symmetry, ...]:
    """Symmetries of an environment by name.

    Args:
        names: symmetries of the task, or import paths of functions of an `EnvConfig` that make a `Symmetry`.
        env: the environment.

    Raises:
        ConfigError: no such symmetry (the message suggests the nearest), or nothing there that makes one.
    """
    known = task_of(env).symmetries
    found = []
    for name in names:
        if name not in known and not is_import_path(name):
            raise ConfigError(unknown_name("windows.symmetries", name, known))
        make: Callable[[EnvConfig], Symmetry] = known.get(name) or load_object(name, "windows.symmetries")
        symmetry = make(env) if callable(make) else make
        if not isinstance(symmetry, Symmetry):
            raise ConfigError(
                f"windows.symmetries: expected a function at {name} that makes a Symmetry from an EnvConfig, got "
                f"{type(symmetry).__name__}"
            )
        found.append(symmetry)
    return tuple(found)


def count_draws(symmetries: Sequence[Symmetry]) -> int:
    """Random numbers that a window needs for all symmetries."""
    return sum(symmetry.num_draws for symmetry in symmetries)


def apply_symmetries(
    symmetries: Sequence[Symmetry], x: Tensor, draws: Tensor, layout: Layout, normalizer: Normalizer
) -> Tensor:
    """Windows changed by each symmetry in turn.

    Args:
        symmetries: the symmetries.
        x: windows whose rows are normalised alike, float32[windows, horizon, columns], without a flag.
        draws: uniform random numbers in [0, 1), float32[windows, draws].
        layout: columns of a transition.
        normalizer: between environment units and x.

    Raises:
        ConfigError: a symmetry changes the shape of a window.
    """
    values = normalizer.unnormalize(x)
    observations, actions = values[:, :, layout.observations], values[:, :, layout.actions]
    for symmetry, own in zip(symmetries, draws.split([each.num_draws for each in symmetries], dim=1), strict=True):
        shapes = observations.shape, actions.shape
        observations, actions = symmetry.apply(observations, actions, own)
        if (observations.shape, actions.shape) != shapes:
            raise ConfigError(
                f"windows.symmetries: expected observations and actions of shapes {[list(s) for s in shapes]} from a "
                f"symmetry, got {[list(observations.shape), list(actions.shape)]}"
            )
    return normalizer.normalize(torch.cat([actions, observations], dim=2))
