"""Random streams: every random number follows from one seed, a purpose and an index, never from what ran before.

Streams of different purposes never overlap, so the episodes that settings are tuned on cannot be those they are
evaluated on, whatever the seeds.
"""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What random numbers are for."""

    COLLECTION = 0
    TRAINING = 1
    TUNING = 2
    EVALUATION = 3
    VALIDATION = 4
    CALIBRATION = 5


def make_seed_sequence(seed: int, stream: Stream, *index: int) -> np.random.SeedSequence:
    """The seed sequence of one unit of work (an episode, a collection unit, a training step)."""
    return np.random.SeedSequence(seed, spawn_key=(int(stream), *index))


def make_seed(seed: int, stream: Stream, *index: int) -> int:
    """A 63-bit seed of one unit of work, for libraries that take an int."""
    return int(make_seed_sequence(seed, stream, *index).generate_state(1, np.uint64)[0] >> 1)


def make_generator(seed: int, stream: Stream, *index: int) -> np.random.Generator:
    """A NumPy generator of one unit of work."""
    return np.random.Generator(np.random.PCG64(make_seed_sequence(seed, stream, *index)))
