from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_episodes import write_dataset

from diffplan.data.dataset import TrajectoryDataset, open_dataset
from diffplan.data.episodes import EpisodeTable
from diffplan.data.format import Manifest, Task, make_columns
from diffplan.data.store import LocalStore
from diffplan.data.window_index import WindowIndex
from diffplan.errors import DataError


def make_dataset(lengths, tasks=None, weights=()):
    """A dataset of which nothing but its index is ever read."""
    lengths = np.asarray(lengths)
    core = {
        "unit": np.arange(len(lengths)),
        "shard": np.zeros(len(lengths)),
        "first_row": np.zeros(len(lengths)),
        "length": lengths,
        "task": np.zeros(len(lengths)) if tasks is None else np.asarray(tasks),
    }
    manifest = Manifest("uuid", {"env_id": "none"}, make_columns(2, 1), [None], [None])
    named = tuple(Task(f"task{i}", weight, "uuid", {}, 1) for i, weight in enumerate(weights))
    table = EpisodeTable(core, lambda: pytest.fail("only the core is needed"))
    return TrajectoryDataset(LocalStore("nowhere"), replace(manifest, tasks=named), (), table, {})


def list_windows(lengths, horizon, stride, padding):
    """All windows by the definition: (episode, rows, which of them are real)."""
    span = (horizon - 1) * stride + 1
    found = []
    for episode, length in enumerate(lengths):
        starts = {"skip": length - span + 1, "short": max(length - span + 1, 1), "end": length}[padding]
        for start in range(max(starts, 0)):
            rows = [start + k * stride for k in range(horizon)]
            found.append((episode, [min(row, length - 1) for row in rows], [row < length for row in rows]))
    return found


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    horizon=st.integers(1, 6),
    stride=st.integers(1, 3),
    padding=st.sampled_from(["skip", "short", "end"]),
)
def test_windows_are_those_of_the_definition(lengths, horizon, stride, padding):
    index = WindowIndex(make_dataset(lengths), stride, padding)
    expected = list_windows(lengths, horizon, stride, padding)
    assert index.num_skipped_episodes(horizon) == sum(
        length < (horizon - 1) * stride + 1 for length in lengths if padding == "skip"
    )
    if not expected:
        with pytest.raises(DataError, match="the longest episode has"):
            index.count(horizon)
        return
    assert index.count(horizon) == len(expected)
    episodes, first_rows = index.locate(np.arange(len(expected)), horizon)
    rows, mask = index.rows(episodes, first_rows, horizon), index.mask(episodes, first_rows, horizon)
    for i, (episode, wanted_rows, real) in enumerate(expected):
        assert (episodes[i], rows[i].tolist()) == (episode, wanted_rows)
        assert all(real) if mask is None else mask[i].tolist() == real


def test_an_episode_that_is_too_short_is_named(tmp_path):
    write_dataset(tmp_path, [[9, 4], [7]])
    dataset = open_dataset(tmp_path)
    assert WindowIndex(dataset, 1, "error").count(4) == 6 + 1 + 4
    with pytest.raises(DataError, match="episode 1 has 4 steps, expected at least 5"):
        WindowIndex(dataset, 1, "error").count(5)


def test_draws_are_uniform_over_windows():
    index = WindowIndex(make_dataset([5, 1, 9, 6]), 1)
    drawn = np.bincount(index.draw(60_000, 3, np.random.default_rng(0)), minlength=index.count(3))
    expected = 60_000 / index.count(3)
    assert index.count(3) == 3 + 7 + 4
    assert ((drawn - expected) ** 2 / expected).sum() < 34.5  # 99.9 % of chi-square with 13 degrees of freedom


def test_tasks_have_their_shares_and_windows_of_a_task_are_uniform():
    dataset = make_dataset([20, 5, 9, 30], tasks=[0, 0, 1, 2], weights=(1.0, 3.0, 0.0))
    index = WindowIndex(dataset, 1)
    episodes, _ = index.locate(index.draw(40_000, 3, np.random.default_rng(0)), 3)
    shares = np.bincount(episodes, minlength=4) / 40_000
    assert shares == pytest.approx([0.25 * 18 / 21, 0.25 * 3 / 21, 0.75, 0.0], abs=0.01)
    other = WindowIndex(dataset, 1, task_weights=(0.0, 0.0, 2.0))
    assert set(other.locate(other.draw(100, 3, np.random.default_rng(0)), 3)[0]) == {3}


@pytest.mark.parametrize(
    ("weights", "said"),
    [((1.0,), "a weight for each task"), ((1.0, -1.0), "numbers >= 0"), ((0.0, 0.0), "not all 0")],
)
def test_weights_that_do_not_fit_are_refused(weights, said):
    with pytest.raises(DataError, match=said):
        WindowIndex(make_dataset([5, 5], tasks=[0, 1], weights=(1.0, 1.0)), 1, task_weights=weights)


def test_a_task_without_windows_needs_the_weight_0():
    index = WindowIndex(make_dataset([9, 2], tasks=[0, 1], weights=(1.0, 1.0)), 1)
    with pytest.raises(DataError, match="task 'task1' has a weight but no window of horizon 3"):
        index.draw(50, 3, np.random.default_rng(0))


def test_index_of_two_million_episodes_is_small():
    dataset = make_dataset(np.full(2_000_000, 500))
    index = WindowIndex(dataset, 1)
    for horizon in (8, 16, 32, 64, 128, 256):
        assert index.count(horizon) == 2_000_000 * (500 - horizon + 1)
    assert dataset.num_steps == 10**9
    assert dataset.episodes.num_index_bytes + index.num_bytes < 100e6
