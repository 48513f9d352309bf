import threading
import time

import pytest

from diffplan.data.windows.prefetch import Prefetcher


def count_threads():
    return sum(thread.name == "prefetch" for thread in threading.enumerate())


@pytest.mark.parametrize("depth", [1, 4, 100])
def test_items_come_in_the_order_of_their_keys(depth):
    keys = [5, 3, 3, 9, *range(50)]
    with Prefetcher(lambda key: key * 10, keys, depth) as items:
        assert list(items) == [key * 10 for key in keys]
    assert count_threads() == 0


def test_no_keys_give_no_items():
    with Prefetcher(str, []) as items:
        assert list(items) == []


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt(), SystemExit(3)])
def test_error_comes_where_its_item_would_have_come(error):
    def make(key):
        if key == 7:
            raise error
        return key

    seen = []
    with Prefetcher(make, range(100)) as items, pytest.raises(type(error)) as caught:
        seen.extend(items)
    assert caught.value is error
    assert seen == list(range(7))
    assert count_threads() == 0


def test_stop_iteration_of_what_is_called_is_no_end():
    seen = []
    with Prefetcher(lambda key: next(iter(range(key, 3))), range(9)) as items, pytest.raises(RuntimeError):
        seen.extend(items)
    assert seen == [0, 1, 2]


def test_error_of_the_keys_comes_too():
    def keys():
        yield 1
        raise LookupError("no more")

    seen = []
    with Prefetcher(str, keys()) as items, pytest.raises(LookupError, match="no more"):
        seen.extend(items)
    assert count_threads() == 0


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_consumer_that_leaves_early_ends_the_thread(error):
    made = []
    since = time.monotonic()

    def consume():
        with Prefetcher(lambda key: made.append(key) or key, range(10**9), 3) as items:
            for item in items:
                if item == 5:
                    raise error

    with pytest.raises(error):
        consume()
    assert time.monotonic() - since < 5
    assert count_threads() == 0
    assert len(made) < 20


def test_slow_consumer_has_few_items_waiting():
    made = []
    with Prefetcher(lambda key: made.append(key) or key, range(1000), 4) as items:
        for number, item in enumerate(items):
            assert item == number
            time.sleep(0.01)
            assert len(made) <= number + 1 + 4 + 1  # asked for, queued, and one in the hand of the thread
            if number == 20:
                break
    assert len(made) > 20


def test_items_are_made_ahead():
    third = threading.Event()

    def make(key):
        if key == 3:
            third.set()
        return key

    with Prefetcher(make, range(10), 4) as items:
        assert next(iter(items)) == 0
        assert third.wait(5)


def test_several_are_made_in_a_row_once_half_are_gone():
    made = []
    with Prefetcher(lambda key: made.append(key) or key, range(1000), 8) as items:
        wait_until(lambda: len(made) == 8)
        for taken, _ in zip(range(1, 9), items, strict=False):
            expected = 8 if taken < 4 else 12 if taken < 8 else 16
            wait_until(lambda number=expected: len(made) == number)
            time.sleep(0.02)
            assert len(made) == expected


def wait_until(condition):
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
