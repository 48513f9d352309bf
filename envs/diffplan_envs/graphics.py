"""Choose what mujoco draws with; import this module before mujoco."""

from __future__ import annotations

import contextlib
import ctypes
import os

if not os.environ.get("DISPLAY"):
    with contextlib.suppress(OSError):  # importing mujoco fails if it is told to use an EGL that is not there
        ctypes.CDLL("libEGL.so.1")
        os.environ.setdefault("MUJOCO_GL", "egl")  # read when mujoco is imported; without a screen only EGL can draw
