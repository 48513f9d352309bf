"""Threads that compute on a CPU: one team of them in a process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def compute_alone() -> None:
    """Have the calling thread compute without the help of others, from now on.

    OpenMP gives each thread that asks for help a team of its own, and keeps it. As soon as a process has more threads
    in teams than it has cores, those of all teams sleep whenever they wait, in place of looking out for work, and have
    to be woken for every layer: a step of a small network then takes twice as long, for good. So beside the thread that
    trains, those that make batches or put checkpoints away compute alone.

    For threads that have not computed yet this becomes the default, until `keep_team` ends.
    """
    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)


@contextmanager
def keep_team(num_threads: int | None = None) -> Iterator[None]:
    """The calling thread computes with so many, whatever the default becomes meanwhile; then that is what it was.

    None: as many as by default. torch has one call for a thread's number and for the default of threads that have not
    computed yet.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(before if num_threads is None else num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
