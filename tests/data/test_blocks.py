import tempfile
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from walks import (
    IDENTITY,
    NAMES,
    find_window,
    flip_bit,
    list_starts,
    make_manifest,
    make_walk,
    make_window,
    write_walks,
)

from diffplan.data.format.dataset import open_dataset, write_snapshot
from diffplan.data.format.manifest import Task
from diffplan.data.format.writer import create_dataset, write_unit
from diffplan.data.maintenance.compaction import compact
from diffplan.data.windows.blocks import BlockReader
from diffplan.data.windows.conditions import Conditions
from diffplan.data.windows.window_index import WindowIndex
from diffplan.errors import DataError
from diffplan.storage.opening import open_store

ROW_BYTES = 20


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    before = threading.active_count()
    yield
    assert threading.active_count() == before


@pytest.fixture
def make_reader():
    made = []

    def make(dataset, *, stride=1, padding="skip", conditions=None, **kwargs):
        index = WindowIndex(dataset, stride, padding)
        values = {"max_horizon": 4, "block_bytes": 8 * ROW_BYTES, "num_pool_blocks": 3, **kwargs}
        conditions = conditions or Conditions()
        made.append(BlockReader(dataset, NAMES, index, IDENTITY, conditions, torch.device("cpu"), **values))
        return made[-1]

    yield make
    for reader in made:
        reader.close()


def read(reader, step, num_windows=16, horizon=4):
    return reader.read(step, num_windows, horizon, np.random.default_rng(step))


def find_all(batch):
    return [find_window(x) for x in batch.x.numpy()]


@settings(max_examples=40)
@given(
    lengths=st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=3), min_size=1, max_size=3),
    block_rows=st.integers(1, 60),
    num_pool_blocks=st.integers(1, 5),
    stride=st.integers(1, 3),
    padding=st.sampled_from(["skip", "short", "end"]),
    max_horizon=st.integers(1, 6),
    joined=st.booleans(),
    every=st.integers(1, 4),
)
def test_every_window_is_one_of_an_episode(
    lengths, block_rows, num_pool_blocks, stride, padding, max_horizon, joined, every
):
    with tempfile.TemporaryDirectory() as directory:
        episodes = write_walks(Path(directory), lengths)
        if joined:
            compact(open_store(directory))
        reader = BlockReader(
            dataset := open_dataset(directory),
            NAMES,
            WindowIndex(dataset, stride, padding, every=every),
            IDENTITY,
            Conditions(),
            torch.device("cpu"),
            max_horizon=max_horizon,
            block_bytes=block_rows * ROW_BYTES,
            num_pool_blocks=num_pool_blocks,
        )
        messages = []
        try:
            for step in (0, 1, 7, 40, 3):
                horizon = max_horizon - step % max_horizon
                starts = list_starts(episodes, horizon, stride, padding)
                try:
                    batch = read(reader, step, horizon=horizon)
                except DataError as error:
                    messages.append(str(error))
                    continue
                for i, x in enumerate(batch.x.numpy()):
                    number, first = find_window(x)
                    assert (number, first) in starts
                    assert first % every == 0
                    expected, real = make_window(episodes[number], first, horizon, stride)
                    np.testing.assert_array_equal(x, expected)
                    assert real.all() if batch.mask is None else np.array_equal(batch.mask[i].numpy(), real)
        finally:
            reader.close()
        assert all("begins in the" in message or "the longest episode has" in message for message in messages)
        shortest = min(len(episode) for episode in episodes)
        # only where blocks begin with short episodes alone; none is shorter than a window
        assert not messages or every > 1 or (padding == "skip" and shortest < (max_horizon - 1) * stride + 1)


@pytest.mark.parametrize("padding", ["skip", "end"])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_batch_is_a_function_of_the_step_and_every_window_comes(tmp_path, make_reader, padding, world_size):
    episodes = write_walks(tmp_path, [[30, 9], [25, 40]])
    seen = set()
    for rank in range(world_size):
        options = {"padding": padding, "rank": rank, "world_size": world_size}
        running = make_reader(open_dataset(tmp_path), **options)
        for step in range(150):
            batch = read(running, step)
            seen |= set(find_all(batch))
            if step % 30 == 29:
                assert torch.equal(read(make_reader(open_dataset(tmp_path), **options), step).x, batch.x)
    assert seen == list_starts(episodes, 4, 1, padding)


def test_reader_may_jump_to_any_step(tmp_path, make_reader):
    write_walks(tmp_path, [[30, 9], [25, 40]])
    dataset = open_dataset(tmp_path)
    straight = make_reader(dataset)
    expected = [read(straight, step).x for step in range(40)]
    jumping = make_reader(dataset)
    for step in np.random.default_rng(0).integers(40, size=120):
        assert torch.equal(read(jumping, step).x, expected[step])
    other = make_reader(dataset, seed=1)
    assert sum(torch.equal(read(other, step).x, expected[step]) for step in range(40)) < 10


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_workers_share_out_the_blocks_of_each_lap(tmp_path, make_reader, world_size):
    write_walks(tmp_path, [[20]] * 12)  # an episode is a shard is a block
    readers = [
        make_reader(
            open_dataset(tmp_path),
            block_bytes=20 * ROW_BYTES,
            num_pool_blocks=1,
            rank=rank,
            world_size=world_size,
        )
        for rank in range(world_size)
    ]
    order = []
    for step in range(5 * 12 // world_size):  # five windows a step: a quarter of the rows of a block
        for reader in readers:
            (block,) = {number for number, _ in find_all(read(reader, step, num_windows=5))}
            order.append(block)
    laps = [order[i : i + 12] for i in range(0, 48, 12)]
    assert all(sorted(lap) == list(range(12)) for lap in laps)
    assert len({tuple(lap) for lap in laps}) == 4


def test_windows_come_equally_often_in_the_long_run(tmp_path, make_reader):
    episodes = write_walks(tmp_path, [[30, 9], [25, 40], [4, 5, 6]])
    counts = Counter()
    for seed in range(4):
        reader = make_reader(open_dataset(tmp_path), block_bytes=16 * ROW_BYTES, seed=seed)
        for step in range(600):
            counts.update(find_all(read(reader, step, num_windows=24)))
    starts = list_starts(episodes, 4, 1, "skip")
    assert set(counts) == starts
    mean = 4 * 600 * 24 / len(starts)
    assert all(0.6 * mean < count < 1.5 * mean for count in counts.values())
    for episode in (e for e in episodes if len(e) > 20):
        rows = len(episode) - 3
        count = sum(counts[episode.episode_index, row] for row in range(rows))
        assert count == pytest.approx(rows * mean, rel=0.1)


def test_tasks_have_their_shares_of_the_pool(tmp_path, make_reader):
    tasks = tuple(Task(name, weight, "uuid", {}, 2) for name, weight in (("a", 1.0), ("b", 3.0), ("c", 0.0)))
    manifest = create_dataset(tmp_path, make_manifest(tasks=tasks))
    for unit, length in enumerate([300, 200, 40, 60, 50, 50]):
        write_unit(tmp_path, manifest, unit, [make_walk(unit, length, task=unit // 2)])
    reader = make_reader(open_dataset(tmp_path), block_bytes=25 * ROW_BYTES, num_pool_blocks=40)
    drawn = Counter()
    for step in range(200):
        batch = read(reader, step, num_windows=24)
        numbers = np.array([number for number, _ in find_all(batch)])
        np.testing.assert_array_equal(batch.task.numpy(), numbers // 2)
        drawn.update(batch.task.tolist())
    assert set(drawn) == {0, 1}
    assert drawn[1] / (drawn[0] + drawn[1]) == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize("pinned", [False, True])
def test_returns_reach_beyond_the_block(tmp_path, make_reader, pinned):
    lengths = [[700, 9], [30], [3, 40], [600]]
    if pinned:  # a joined shard in which units of others lie between
        write_walks(tmp_path, lengths, only=(0, 2))
        write_snapshot(open_dataset(tmp_path))
        write_walks(tmp_path, lengths, only=(3, 1))
        compact(open_store(tmp_path))
        for path in (tmp_path / "shards").glob("????????-????????????.arrow"):
            path.unlink()
        episodes = [make_walk(number, length) for number, length in enumerate([700, 9, 30, 3, 40, 600])]
    else:
        episodes = write_walks(tmp_path, lengths)
    conditions = Conditions(returns_to_go=True, discount=0.99, termination_penalty=10.0, goal="episode_end")
    dataset = open_dataset(tmp_path, snapshot=0 if pinned else None)
    assert len(dataset.shards) == (1 if pinned else 4)
    expected = {}
    for episode in episodes:
        rewards = episode.rewards.astype(np.float64)
        rewards[-1] -= 10.0 * episode.terminated
        for row in reversed(range(len(rewards))):
            later = expected.get((episode.episode_index, row + 1), 0.0)
            expected[episode.episode_index, row] = rewards[row] + 0.99 * later
    reader = make_reader(dataset, padding="end", conditions=conditions, block_bytes=50 * ROW_BYTES)
    seen = set()
    for step in range(120):
        batch = read(reader, step)
        for start, got, goal in zip(find_all(batch), batch.returns_to_go.numpy(), batch.goal.numpy(), strict=True):
            assert got == pytest.approx(expected[start], rel=1e-5, abs=1e-5)
            np.testing.assert_array_equal(goal, episodes[start[0]].observations[-1])
            seen.add(start[0])
    assert seen == ({0, 1, 3, 4} if pinned else set(range(6)))


def test_damage_is_told_each_time_and_other_steps_stay_right(tmp_path, make_reader):
    write_walks(tmp_path, [[40]] * 6)
    dataset = open_dataset(tmp_path)
    options = {"block_bytes": 20 * ROW_BYTES, "verify": True}
    sound = make_reader(dataset, **options)
    expected = [read(sound, step).x for step in range(40)]
    flip_bit(dataset, 3, "action", 5)
    reader = make_reader(dataset, **options)
    failed, right, messages = set(), set(), set()
    for step in range(40):
        for other in (step, step // 2):  # the pool is half moved when the damage is found
            try:
                assert torch.equal(read(reader, other).x, expected[other])
                right.add(other)
            except DataError as error:
                messages.add(str(error).split(" of the bytes")[0])
                failed.add(other)
    assert len(messages) == 1
    assert "expected checksum" in messages.pop()
    assert right
    assert not failed & right


def test_pool_of_episodes_that_are_too_short_is_an_error_of_one_line(tmp_path, make_reader):
    write_walks(tmp_path, [[20], [3, 3, 3, 3]])
    reader = make_reader(open_dataset(tmp_path), num_pool_blocks=1, block_bytes=20 * ROW_BYTES)
    outcomes = set()
    for step in range(8):
        try:
            outcomes |= {number for number, _ in find_all(read(reader, step, num_windows=5))}
        except DataError as error:
            outcomes.add(str(error))
    assert outcomes == {
        0,
        f"{tmp_path}: no window of horizon 4 begins in the 1 blocks in memory; "
        "take the storage memory or mapped, or a shorter horizon",
    }


def test_few_rows_at_the_end_of_a_shard_are_no_block_of_their_own(tmp_path, make_reader):
    write_walks(tmp_path, [[22], [23]])  # 3 rows alone would begin no window of 4
    reader = make_reader(open_dataset(tmp_path), block_bytes=20 * ROW_BYTES, num_pool_blocks=1)
    drawn = Counter()
    for step in range(200):
        drawn.update(find_all(read(reader, step, num_windows=5)))
    assert set(drawn) == {(0, row) for row in range(19)} | {(1, row) for row in range(20)}


def test_horizon_beyond_the_longest_is_refused(tmp_path, make_reader):
    write_walks(tmp_path, [[20]])
    with pytest.raises(ValueError, match="expected a horizon of at most 4, got 5"):
        read(make_reader(open_dataset(tmp_path)), 0, horizon=5)
