"""Memory of tensors on a CPU: kept by the process between steps."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 2**30
"""So much freed memory is kept before any goes back to the system."""
OWN_MAPPING_BYTES = 2**25
"""Larger pieces are mapped from the system and given back one by one; the most that every glibc takes."""


def keep_freed_memory() -> bool:
    """Have the C library keep what is freed, instead of giving it back to the system at once.

    The activations of a step are freed at its end, a few megabytes, and glibc gives them back, so that the system must
    clear the same pages again in the next step: of a small network's step an eighth of the time, of a larger batch's a
    fifth. This holds for the whole process, from now on.

    Returns:
        Whether the C library could be told; other libraries than glibc cannot.

    Source: `mallopt(3)`.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library; the last is what Windows says
        return False
    return bool(mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES) and mallopt(_M_MMAP_THRESHOLD, OWN_MAPPING_BYTES))
