"""Which windows there are, and which are drawn, against lists of them made one by one."""

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_episodes import make_episode, make_manifest, write_dataset
from scipy.stats import chisquare

from diffplan.data.format.dataset import TrajectoryDataset, open_dataset
from diffplan.data.format.episodes import EpisodeTable
from diffplan.data.format.manifest import Task
from diffplan.data.format.writer import create_dataset, write_unit
from diffplan.data.windows.window_index import MAX_TABLE_BYTES, WindowIndex
from diffplan.errors import DataError
from diffplan.storage.store import LocalStore

PADDINGS = ["skip", "error", "short", "end"]


def list_windows(lengths, horizon, stride, padding):
    """Episode, first row, rows and mask of every window, one by one; None where an episode is too short."""
    windows = []
    for episode, length in enumerate(lengths):
        starts = [row for row in range(length) if row + (horizon - 1) * stride < length]
        if padding == "error" and not starts:
            return None
        if padding == "end":
            starts = list(range(length))
        if padding == "short" and not starts:
            starts = [0]
        for start in starts:
            wanted = [start + i * stride for i in range(horizon)]
            windows.append((episode, start, [min(row, length - 1) for row in wanted], [row < length for row in wanted]))
    return windows


@given(
    lengths_of_units=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=3),
    horizon=st.integers(1, 6),
    stride=st.integers(1, 4),
    every=st.integers(1, 5),
)
def test_windows_are_those_listed_one_by_one(lengths_of_units, horizon, stride, every):
    lengths = [length for unit in lengths_of_units for length in unit]
    with tempfile.TemporaryDirectory() as directory:
        write_dataset(Path(directory), lengths_of_units)
        dataset = open_dataset(directory)
        for padding in PADDINGS:
            index = WindowIndex(dataset, stride, padding, every=every)
            expected = list_windows(lengths, horizon, stride, padding)
            if expected is not None:
                expected = [window for window in expected if window[1] % every == 0]
            if not expected:
                for _ in range(2):  # the second time as the first
                    with pytest.raises(DataError, match=f"^{directory}: .*take a shorter horizon") as caught:
                        index.count(horizon)
                    assert "\n" not in str(caught.value)
                continue
            assert index.count(horizon) == len(expected)
            order = np.random.default_rng(0).permutation(len(expected))
            episodes, first_rows = index.locate(order, horizon)
            assert episodes.tolist() == [expected[i][0] for i in order]
            assert first_rows.tolist() == [expected[i][1] for i in order]
            assert index.rows(episodes, first_rows, horizon).tolist() == [expected[i][2] for i in order]
            mask = index.mask(episodes, first_rows, horizon)
            masks = [expected[i][3] for i in order]
            if mask is None:
                assert padding in ("skip", "error")
                assert all(all(window) for window in masks)
            else:
                assert mask.dtype == bool
                assert mask.tolist() == masks
            located = {episode for episode, *_ in expected}
            assert index.num_skipped_episodes(horizon) == len(lengths) - len(located)


@pytest.mark.parametrize("padding", PADDINGS)
def test_every_window_is_drawn_equally_often(tmp_path, padding):
    lengths = [6, 11, 8, 30] if padding == "error" else [6, 2, 1, 8, 30, 3]
    write_dataset(tmp_path, [lengths[:3], lengths[3:]])
    index = WindowIndex(open_dataset(tmp_path), 2, padding)
    count = index.count(3)
    drawn = index.draw(1000 * count, 3, np.random.default_rng(0))
    assert chisquare(np.bincount(drawn, minlength=count)).pvalue > 1e-3
    assert drawn.max() < count


def test_draws_follow_from_the_generator(dataset_root):
    index = WindowIndex(open_dataset(dataset_root), 1)
    first, again, other = (index.draw(50, 3, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_error_names_the_episode_that_is_too_short(tmp_path):
    write_dataset(tmp_path, [[9, 8], [4, 7]])
    index = WindowIndex(open_dataset(tmp_path), 2, "error")
    assert index.count(2) == 7 + 6 + 2 + 5
    with pytest.raises(DataError, match=r"episode 2 has 4 steps, expected at least 5 \(horizon 3, stride 2\)"):
        index.count(3)


def write_tasks(root, tasks):
    """Units of tasks; each task is a weight and a list of units of episode lengths."""
    manifest = dataclasses.replace(
        make_manifest(),
        tasks=tuple(Task(f"maze-{i}", weight, f"uuid-{i}", {}, len(units)) for i, (weight, units) in enumerate(tasks)),
    )
    create_dataset(root, manifest)
    unit, index = 0, 0
    for task, (_, units) in enumerate(tasks):
        for lengths in units:
            episodes = [dataclasses.replace(make_episode(index + i, n), task=task) for i, n in enumerate(lengths)]
            write_unit(root, manifest, unit, episodes)
            unit, index = unit + 1, index + len(lengths)
    return open_dataset(root)


TASKS = [(1.0, [[5, 9], [7]]), (3.0, [[40]]), (0.0, [[6, 6, 6]]), (0.5, [[4], [30, 12]])]


@pytest.mark.parametrize("weights", [None, (1, 1, 1, 1), (0, 0, 0, 7), (0.2, 0, 0.1, 0.7), (1e-12, 1e12, 0, 0)])
@pytest.mark.parametrize("padding", PADDINGS)
def test_tasks_are_drawn_by_weight_and_their_windows_uniformly(tmp_path, weights, padding):
    dataset = write_tasks(tmp_path, TASKS)
    index = WindowIndex(dataset, 1, padding, weights)
    shares = np.array([weight for weight, _ in TASKS] if weights is None else weights, float)
    shares /= shares.sum()
    num_draws = 40_000
    drawn = index.draw(num_draws, 4, np.random.default_rng(0))
    task_of_window = dataset.episodes.task[index.locate(np.arange(index.count(4)), 4)[0]]
    counts = np.bincount(drawn, minlength=len(task_of_window))
    of_task = np.bincount(task_of_window[drawn], minlength=len(TASKS))
    assert (of_task[shares == 0] == 0).all()
    expected = num_draws * shares
    np.testing.assert_allclose(of_task, expected, atol=5 * np.sqrt(num_draws) / 2)
    for task in range(len(TASKS)):
        if expected[task] > 1000:
            assert chisquare(counts[task_of_window == task]).pvalue > 1e-3


def test_without_tasks_the_share_of_an_episode_is_that_of_its_windows(tmp_path):
    write_dataset(tmp_path, [[10], [30]])
    index = WindowIndex(open_dataset(tmp_path), 1)
    drawn = index.draw(60_000, 6, np.random.default_rng(0))
    assert np.mean(drawn < 5) == pytest.approx(5 / 30, abs=0.01)
    with pytest.raises(DataError, match=r"a weight for each task \(none\), got 2 weights"):
        WindowIndex(open_dataset(tmp_path), 1, task_weights=(0.5, 0.5))


@pytest.mark.parametrize(
    ("weights", "complaint"),
    [
        ((1.0, 1.0), r"a weight for each task \(maze-0, maze-1, maze-2, maze-3\), got 2 weights"),
        ((), "got 0 weights"),
        ((1.0, -0.1, 1.0, 1.0), "expected numbers >= 0 that are not all 0"),
        ((0.0, 0.0, 0.0, 0.0), "expected numbers >= 0 that are not all 0"),
        ((1.0, float("nan"), 1.0, 1.0), "expected numbers >= 0 that are not all 0"),
        ((1.0, float("inf"), 1.0, 1.0), "expected numbers >= 0 that are not all 0"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, weights, complaint):
    dataset = write_tasks(tmp_path, TASKS)
    with pytest.raises(DataError, match=f"^task_weights: .*{complaint}") as caught:
        WindowIndex(dataset, 1, task_weights=weights)
    assert "\n" not in str(caught.value)


def test_task_without_windows_is_refused_unless_its_weight_is_0(tmp_path):
    dataset = write_tasks(tmp_path, TASKS)
    index = WindowIndex(dataset, 1)
    with pytest.raises(DataError, match="task 'maze-0' has a weight but no window of horizon 10"):
        index.draw(1000, 10, np.random.default_rng(0))
    weighted = WindowIndex(dataset, 1, task_weights=(0, 1, 0, 1))
    drawn = weighted.draw(1000, 10, np.random.default_rng(0))
    assert set(dataset.episodes.task[weighted.locate(drawn, 10)[0]]) == {1, 3}


def test_tasks_at_the_ends_of_the_dataset_may_have_no_windows(tmp_path):
    dataset = write_tasks(tmp_path, [(0.0, [[2]]), (1.0, [[9, 2, 9]]), (0.0, [[1, 1]])])
    index = WindowIndex(dataset, 1)
    episodes, _ = index.locate(index.draw(500, 5, np.random.default_rng(0)), 5)
    assert set(episodes.tolist()) == {1, 3}


def test_two_million_episodes_take_less_than_100_mb(tmp_path):
    num_episodes = 2_000_000
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 60, num_episodes)
    shard = np.arange(num_episodes) // 500
    ends = np.cumsum(lengths)
    core = {
        "unit": shard,
        "shard": shard,
        "first_row": ends - lengths - (ends - lengths)[shard * 500],
        "length": lengths,
        "task": np.zeros(num_episodes),
    }
    table = EpisodeTable(core, lambda: pytest.fail("the whole table was read"))
    dataset = TrajectoryDataset(LocalStore(tmp_path), make_manifest(), (), table, {})
    index = WindowIndex(dataset, 1)
    for horizon in range(4, 37, 4):  # as many as a training run draws from
        count = index.count(horizon)
        assert count == np.maximum(lengths - horizon + 1, 0).sum()
        drawn = index.draw(1000, horizon, generator)
        episodes, first_rows = index.locate(np.concatenate([drawn, [0, count - 1]]), horizon)
        assert (first_rows >= 0).all()
        assert (first_rows + horizon <= lengths[episodes]).all()
        assert table.num_index_bytes + index.num_bytes < 100e6
    assert table.num_index_bytes == 18 * num_episodes
    assert 0 < index.num_bytes <= MAX_TABLE_BYTES + 8 * num_episodes
