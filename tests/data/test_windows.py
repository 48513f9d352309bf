import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_episodes import write_dataset

from diffplan.data.format.dataset import open_dataset
from diffplan.data.windows.mapped_windows import Windows
from diffplan.errors import DataError


def list_windows(episodes, horizon, stride):
    """Every window of every episode by slicing, in the order of episodes and starts."""
    span = (horizon - 1) * stride + 1
    return [
        np.concatenate([episode.actions, episode.observations[:-1]], axis=1)[start : start + span : stride]
        for episode in episodes
        for start in range(len(episode) - span + 1)
    ]


@settings(max_examples=40)
@given(
    lengths_of_units=st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=4), min_size=1, max_size=4),
    horizon=st.integers(1, 6),
    stride=st.integers(1, 4),
)
def test_windows_are_exactly_the_slices_of_single_episodes(lengths_of_units, horizon, stride):
    with tempfile.TemporaryDirectory() as directory:
        episodes = write_dataset(Path(directory), lengths_of_units)
        windows = Windows(open_dataset(directory), ("action", "observation"), stride)
        expected = list_windows(episodes, horizon, stride)
        if not expected:
            with pytest.raises(DataError, match="take a shorter horizon"):
                windows.count(horizon)
            return
        assert windows.count(horizon) == len(expected)
        np.testing.assert_array_equal(windows.gather(np.arange(len(expected)), horizon), np.stack(expected))


def test_episodes_shorter_than_a_window_are_skipped_wherever_they_stand(tmp_path):
    episodes = write_dataset(tmp_path, [[2, 2, 9], [1], [7, 3], [2]])
    windows = Windows(open_dataset(tmp_path), ("action", "observation"), stride=2)
    expected = np.stack(list_windows(episodes, 3, 2))
    assert windows.count(3) == 5 + 3
    order = np.random.default_rng(0).permutation(8)
    np.testing.assert_array_equal(windows.gather(order, 3), expected[order])


def test_plain_columns_join_as_one_entry(tmp_path):
    episodes = write_dataset(tmp_path, [[5], [6]])
    windows = Windows(open_dataset(tmp_path), ("reward", "goal", "cost"), stride=1)
    got = windows.gather(np.array([0, 2, 5]), 3)
    assert got.shape == (3, 3, 4)
    for values, (episode, first) in zip(got, [(episodes[0], 0), (episodes[0], 2), (episodes[1], 2)], strict=True):
        rows = slice(first, first + 3)
        np.testing.assert_array_equal(values[:, 0], episode.rewards[rows])
        np.testing.assert_array_equal(values[:, 1:3], episode.columns["goal"][rows])
        np.testing.assert_array_equal(values[:, 3], episode.columns["cost"][rows])


def test_one_object_serves_several_horizons(tmp_path):
    episodes = write_dataset(tmp_path, [[10, 4], [8]])
    windows = Windows(open_dataset(tmp_path), ("action", "observation"), stride=1)
    for horizon in (4, 8, 2, 4):
        expected = np.stack(list_windows(episodes, horizon, 1))
        np.testing.assert_array_equal(windows.gather(np.arange(windows.count(horizon)), horizon), expected)


def test_every_window_is_drawn_equally_often(tmp_path):
    episodes = write_dataset(tmp_path, [[6, 3], [8]])
    windows = Windows(open_dataset(tmp_path), ("action", "observation"), stride=1)
    expected = [w.tobytes() for w in list_windows(episodes, 3, 1)]
    num_draws = 1000 * len(expected)
    drawn = Counter(w.tobytes() for w in windows.sample(num_draws, 3, np.random.default_rng(0)))
    assert set(drawn) == set(expected)
    assert all(abs(count - 1000) < 150 for count in drawn.values())


def test_samples_follow_from_the_generator(tmp_path):
    write_dataset(tmp_path, [[20], [30]])
    draws = [
        Windows(open_dataset(tmp_path), ("observation",), 2).sample(16, 4, np.random.default_rng(1)) for _ in range(2)
    ]
    np.testing.assert_array_equal(*draws)


def test_samples_survive_their_dataset_and_may_be_changed(tmp_path):
    episodes = write_dataset(tmp_path, [[5]])
    windows = Windows(open_dataset(tmp_path), ("observation",), 1)
    sample = windows.gather(np.array([0]), 5)
    sample[:] = 7.0
    np.testing.assert_array_equal(windows.gather(np.array([0]), 5)[0], episodes[0].observations[:-1])


def test_too_long_a_horizon_names_the_dataset_and_the_longest_episode(dataset_root):
    windows = Windows(open_dataset(dataset_root), ("observation",), stride=2)
    assert windows.count(4) == 1  # spans 7 steps
    with pytest.raises(DataError, match=rf"{dataset_root}.*stride 2 spans 9 steps.*longest episode has 7"):
        windows.count(5)
