"""The needed units are the shortest prefix whose steps reach the request, in whatever order they are known."""

import random

from hypothesis import given
from hypothesis import strategies as st

from diffplan.cluster.collect.prefix import NeededUnits


@st.composite
def collections(draw):
    """Steps to collect, the steps of a full unit, and the steps of more units than can be needed."""
    full = draw(st.integers(1, 30))
    num_steps = draw(st.integers(1, 200))
    lengths = draw(st.lists(st.integers(1, full), min_size=num_steps, max_size=num_steps))
    return num_steps, full, lengths


def shortest_prefix(num_steps, lengths):
    total = num_units = 0
    while total < num_steps:
        total += lengths[num_units]
        num_units += 1
    return num_units, total


@given(collections(), st.integers(0, 2**32), st.integers(0, 5))
def test_the_end_is_that_of_the_shortest_prefix(collection, seed, num_ahead):
    num_steps, full, lengths = collection
    order = random.Random(seed)
    needed = NeededUnits(num_steps, full)
    expected, total = shortest_prefix(num_steps, lengths)
    unknown = set(range(len(lengths)))
    while not needed.is_complete:
        certain = [unit for unit in range(needed.end) if unit in unknown]
        ahead = [unit for unit in range(needed.end, min(needed.end + num_ahead, len(lengths))) if unit in unknown]
        assert certain, "nothing to do, and not complete"
        unit = order.choice([*certain, *ahead])
        unknown.discard(unit)
        end = needed.end
        needed.note(unit, lengths[unit])
        assert end <= needed.end <= expected, "a unit was called needed that is not"
        needed.note(unit, 10**6)  # the first answer counts
        assert needed.knows(unit)
    assert (needed.end, needed.num_done) == (expected, total)


def test_with_full_episodes_all_units_are_known_from_the_start():
    needed = NeededUnits(9_000, 1_200)
    assert needed.end == needed.expected_end == 8
    assert not needed.is_complete


def test_the_expected_end_follows_the_mean_of_what_is_known():
    needed = NeededUnits(1_000, 100)
    assert needed.expected_end == 10
    needed.note(3, 20)
    assert needed.expected_end > 40
    for unit in range(50):
        needed.note(unit, 20)
    assert (needed.end, needed.expected_end, needed.is_complete) == (50, 50, True)
