import tempfile
import threading
from pathlib import Path

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from walks import IDENTITY, NAMES, find_window, list_starts, make_window, write_walks

from diffplan.data.blocks import BlockReader
from diffplan.data.conditions import Conditions
from diffplan.data.dataset import open_dataset
from diffplan.data.window_index import WindowIndex


def make_reader(dataset, *, stride=1, padding="skip", **kwargs):
    index = WindowIndex(dataset, stride, padding)
    values = {"max_horizon": 4, "block_bytes": 20 * 8, "num_pool_blocks": 3, **kwargs}
    return BlockReader(dataset, NAMES, index, IDENTITY, Conditions(), torch.device("cpu"), **values)


def read(reader, step, num_windows=16, horizon=4):
    return reader.read(step, num_windows, horizon, np.random.default_rng(step))


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=3), min_size=1, max_size=3),
    block_rows=st.integers(1, 60),
    num_pool_blocks=st.integers(1, 5),
    stride=st.integers(1, 3),
    padding=st.sampled_from(["short", "end"]),
    horizon=st.integers(1, 4),
)
def test_every_window_is_one_of_an_episode(lengths, block_rows, num_pool_blocks, stride, padding, horizon):
    with tempfile.TemporaryDirectory() as directory:
        episodes = write_walks(Path(directory), lengths)
        sizes = {"block_bytes": 20 * block_rows, "num_pool_blocks": num_pool_blocks}
        reader = make_reader(open_dataset(directory), stride=stride, padding=padding, **sizes)
        starts = list_starts(episodes, horizon, stride, padding)
        for step in (0, 1, 7, 40):
            batch = read(reader, step, horizon=horizon)
            for x, mask in zip(batch.x.numpy(), batch.mask.numpy(), strict=True):
                number, first = find_window(x)
                expected, real = make_window(episodes[number], first, horizon, stride)
                np.testing.assert_array_equal(x, expected)
                np.testing.assert_array_equal(mask, real)
                assert (number, first) in starts
        reader.close()


def test_batch_is_a_function_of_the_step_and_every_window_comes(tmp_path):
    episodes = write_walks(tmp_path, [[30, 9], [25, 40]])
    before = threading.active_count()
    for world_size in (1, 2, 3):
        seen = set()
        for rank in range(world_size):
            options = {"padding": "end", "rank": rank, "world_size": world_size}
            running = make_reader(open_dataset(tmp_path), **options)
            for step in range(150):
                x = read(running, step).x
                seen |= {find_window(window) for window in x.numpy()}
                if step % 50 == 49:
                    fresh = make_reader(open_dataset(tmp_path), **options)
                    assert torch.equal(read(fresh, step).x, x)
                    fresh.close()
            running.close()
        assert seen == list_starts(episodes, 4, 1, "end")
    assert threading.active_count() == before
