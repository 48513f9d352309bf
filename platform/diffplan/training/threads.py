"""Threads that compute on a CPU: one team of them in a process."""

from __future__ import annotations

import torch


def compute_alone() -> None:
    """Have the calling thread compute without the help of others, from now on.

    OpenMP gives each thread that asks for help a team of its own, and keeps it. As soon as a process has more threads
    in teams than it has cores, those of all teams sleep whenever they wait, in place of looking out for work, and have
    to be woken for every layer: a step of a small network then takes twice as long, for good. So beside the thread that
    trains, those that make batches or put checkpoints away compute alone.

    For threads that have not computed yet this becomes the default; see `keep_team`.
    """
    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)


def keep_team() -> None:
    """Have the calling thread compute with as many as by default now, whatever becomes the default."""
    torch.set_num_threads(torch.get_num_threads())
