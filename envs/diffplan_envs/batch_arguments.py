"""Arguments that all our batches of environments have, and their checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode


def check_batch(num_envs: int, render_mode: str | None, autoreset_mode: AutoresetMode | str) -> AutoresetMode:
    """The autoreset mode; raises `ValueError` for no environment, a render mode, or `SAME_STEP`."""
    if num_envs < 1:
        raise ValueError(f"num_envs: expected at least 1, got {num_envs}")
    if render_mode is not None:
        raise ValueError(f"render_mode: a batch is not drawn, expected None, got {render_mode!r}")
    autoreset_mode = AutoresetMode(autoreset_mode)
    if autoreset_mode is AutoresetMode.SAME_STEP:
        raise ValueError("autoreset_mode: expected NEXT_STEP or DISABLED, got SAME_STEP")
    return autoreset_mode


def list_seeds(seed: int | Sequence[int | None] | None, num_envs: int) -> list[int | None]:
    """A seed for each environment: an int seeds environment i with `seed + i`, as Gymnasium's vector environments do.

    Raises:
        ValueError: another number of seeds than of environments.
    """
    if isinstance(seed, int):
        return [seed + i for i in range(num_envs)]
    seeds: list[int | None] = [None] * num_envs if seed is None else list(seed)
    if len(seeds) != num_envs:
        raise ValueError(f"seed: expected {num_envs} seeds, got {len(seeds)}")
    return seeds


def take_mask(options: dict[str, Any], num_envs: int) -> np.ndarray:
    """Take `reset_mask` out of the options of a reset: which environments start, bool[num_envs]; all without it.

    Raises:
        ValueError: a mask of another shape or type.
    """
    mask = np.asarray(options.pop("reset_mask", np.ones(num_envs, dtype=bool)))
    if mask.shape != (num_envs,) or mask.dtype != bool:
        raise ValueError(f"reset_mask: expected bool[{num_envs}], got {mask.dtype}{list(mask.shape)}")
    return mask


def require_no_autoreset(autoreset_mode: AutoresetMode) -> None:
    """Raise `ValueError` for environments that reset themselves, which cannot be stepped one by one."""
    if autoreset_mode is not AutoresetMode.DISABLED:
        raise ValueError(f"autoreset_mode: expected DISABLED to step some only, got {autoreset_mode}")
