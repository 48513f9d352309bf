import itertools

import numpy as np
import pytest

from diffplan.seeding import Stream, make_generator, make_seed, make_seed_sequence

# Written down once, for seed 7 and index (3, 1). They must never change: every dataset, every training run and every
# evaluation follows from them.
GOLDEN = {
    Stream.COLLECTION: 7040822573648567177,
    Stream.TRAINING: 4469910593443292266,
    Stream.TUNING: 6919797921778749983,
    Stream.EVALUATION: 5531457103240227586,
    Stream.VALIDATION: 5756196116686817975,
    Stream.CALIBRATION: 2513191886174828697,
}


@pytest.mark.parametrize("stream", Stream)
def test_seeds_are_those_written_down(stream):
    assert make_seed(7, stream, 3, 1) == GOLDEN[stream]


def test_generator_draws_what_was_written_down():
    drawn = make_generator(7, Stream.EVALUATION, 3).integers(2**31, size=2)
    assert drawn.tolist() == [90661469, 1153520083]


def test_streams_are_numbered_for_good():
    assert {stream.name: int(stream) for stream in Stream} == {
        "COLLECTION": 0,
        "TRAINING": 1,
        "TUNING": 2,
        "EVALUATION": 3,
        "VALIDATION": 4,
        "CALIBRATION": 5,
    }


def test_no_two_units_of_work_share_a_seed():
    indices = [(), *((i,) for i in range(200)), *itertools.product(range(40), range(3)), (0, 0, 0), (0, 0, 1)]
    seeds = [make_seed(seed, stream, *index) for seed in range(5) for stream in Stream for index in indices]
    assert len(set(seeds)) == len(seeds)


def test_seeds_fit_a_signed_64_bit_integer():
    seeds = [make_seed(0, Stream.TRAINING, i) for i in range(200)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62


def test_streams_of_neighbouring_seeds_are_uncorrelated():
    first, second = (make_generator(seed, Stream.TRAINING, 0).standard_normal(20_000) for seed in (0, 1))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03


def test_generator_is_that_of_its_sequence_and_starts_afresh():
    expected = np.random.Generator(np.random.PCG64(make_seed_sequence(1, Stream.TUNING, 2))).random(5)
    for _ in range(2):
        np.testing.assert_array_equal(make_generator(1, Stream.TUNING, 2).random(5), expected)
