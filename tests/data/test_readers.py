import itertools
import os
import subprocess
import sys
import textwrap
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
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
from diffplan.data.windows import readers
from diffplan.data.windows.blocks import BlockReader
from diffplan.data.windows.conditions import Conditions
from diffplan.data.windows.normalization import Normalizer
from diffplan.data.windows.readers import MappedReader, MemoryReader, choose_storage, make_window_reader
from diffplan.data.windows.window_index import WindowIndex
from diffplan.errors import ConfigError, DataError
from diffplan.storage.opening import open_store

LENGTHS = [[30, 4, 17], [9, 25], [3, 40], [12]]
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["float32", "float64"])
def walks(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("walks") / "dataset"
    episodes = write_walks(root, LENGTHS, dtype=request.param)
    return open_dataset(root), episodes


@pytest.fixture(scope="module")
def plain_walks(tmp_path_factory):
    root = tmp_path_factory.mktemp("plain") / "dataset"
    return open_dataset(root) if write_walks(root, LENGTHS) else None


def make_reader(dataset, storage, *, stride=1, padding="skip", names=NAMES, normalizer=IDENTITY, **kwargs):
    index = WindowIndex(dataset, stride, padding)
    return make_window_reader(dataset, names, index, normalizer, storage=storage, max_horizon=6, **kwargs)


def read(reader, num_windows=64, horizon=5, seed=0, rows=slice(None)):
    return reader.read(0, num_windows, horizon, np.random.default_rng(seed), rows)


def assert_equal_batches(first, second):
    for name in ("x", "mask", "goal", "returns_to_go", "task"):
        a, b = getattr(first, name), getattr(second, name)
        assert (a is None) == (b is None), name
        assert a is None or (a.dtype == b.dtype and torch.equal(a, b)), name


@pytest.mark.parametrize("padding", ["skip", "error", "short", "end"])
@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("names", [("action", "observation"), ("observation", "action"), ("observation",)])
def test_mapped_and_memory_give_the_same_bits(walks, padding, stride, names):
    dataset, _ = walks
    horizon = 1 if padding == "error" else 5
    for kind, goal in itertools.product(("limits", "gaussian", "quantile"), ("window_end", "future")):
        normalizer = Normalizer.fit([dataset.statistics[name] for name in names], kind)
        options = {"stride": stride, "padding": padding, "names": names, "normalizer": normalizer}
        options["conditions"] = Conditions(goal=goal, returns_to_go=True, discount=0.97)
        mapped, memory = (make_reader(dataset, storage, **options) for storage in ("mapped", "memory"))
        first, second = read(mapped, horizon=horizon), read(memory, horizon=horizon)
        assert_equal_batches(first, second)
        assert first.x.dtype == torch.float32
        assert first.x.shape == (64, horizon, sum(dataset.manifest.column(name).size for name in names))


@pytest.mark.parametrize("storage", ["mapped", "memory"])
@pytest.mark.parametrize("names", [("action", "observation"), ("observation", "action")])
@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("padding", ["skip", "short", "end"])
def test_windows_and_masks_are_slices_of_episodes(walks, storage, names, stride, padding):
    dataset, episodes = walks
    reader = make_reader(dataset, storage, stride=stride, padding=padding, names=names)
    batch = read(reader, num_windows=2000)
    starts = set()
    for i, x in enumerate(batch.x.numpy()):
        number, first = find_window(x, names)
        expected, real = make_window(episodes[number], first, 5, stride, names)
        np.testing.assert_array_equal(x, expected.astype(np.float32))
        assert real.all() if batch.mask is None else np.array_equal(batch.mask[i].numpy(), real)
        starts.add((number, first))
    assert starts == list_starts(episodes, 5, stride, padding)
    assert (batch.mask is None) == (padding == "skip")


def test_normalisation_of_float64_is_that_of_numpy_up_to_rounding(tmp_path):
    write_walks(tmp_path, LENGTHS, dtype="float64")
    dataset = open_dataset(tmp_path)
    normalizer = Normalizer.fit([dataset.statistics[name] for name in NAMES], "gaussian")
    plain = read(make_reader(dataset, "mapped"))
    expected = (plain.x.numpy().astype(np.float64) - normalizer.center) / normalizer.scale
    for storage in ("mapped", "memory"):
        x = read(make_reader(dataset, storage, normalizer=normalizer)).x
        np.testing.assert_allclose(x.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("storage", ["mapped", "memory", "blocks"])
@pytest.mark.parametrize("padding", ["skip", "short", "end"])
def test_goals_at_the_end_of_windows_and_of_episodes(walks, storage, padding):
    dataset, episodes = walks
    statistics = [dataset.statistics[name] for name in NAMES]
    for normalizer in (IDENTITY, Normalizer.fit(statistics, "limits"), Normalizer.fit(statistics, "quantile")):
        for goal in ("window_end", "episode_end"):
            reader = make_reader(
                dataset, storage, stride=3, padding=padding, normalizer=normalizer, conditions=Conditions(goal=goal)
            )
            batch = read(reader)
            rounded = normalizer.unnormalize(batch.x[:, 0]).numpy()
            for i in range(64):
                number, first = find_window(rounded[i : i + 1])
                episode = episodes[number]
                row = len(episode) if goal == "episode_end" else min(first + 4 * 3, len(episode) - 1)
                padded = np.concatenate([np.zeros(2), episode.observations[row]]).astype(np.float32)
                expected = normalizer.normalize(padded)[2:]
                np.testing.assert_allclose(batch.goal[i].numpy(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("storage", ["mapped", "memory"])
def test_future_goals_are_uniform_over_the_later_observations(tmp_path, storage):
    episodes = write_walks(tmp_path, [[4], [7]])
    batch = read(make_reader(open_dataset(tmp_path), storage, conditions=Conditions(goal="future")), 9_000, horizon=2)
    drawn = defaultdict(Counter)
    for x, goal in zip(batch.x.numpy(), batch.goal.numpy(), strict=True):
        number, first = find_window(x)
        row = round(float(goal[1]))
        np.testing.assert_array_equal(goal, episodes[number].observations[row])
        drawn[number, first][row] += 1
    assert set(drawn) == list_starts(episodes, 2, 1, "skip")
    for (number, first), counts in drawn.items():
        later = range(first + 1, len(episodes[number]) + 1)
        assert set(counts) == set(later)  # the final observation too, and never the window's first
        assert chisquare([counts[row] for row in later]).pvalue > 1e-4


def test_future_goals_cannot_be_had_from_blocks(plain_walks):
    with pytest.raises(DataError, match="need the storage memory or mapped, got blocks"):
        make_reader(plain_walks, "blocks", conditions=Conditions(goal="future"))


@pytest.mark.parametrize("storage", ["mapped", "memory", "blocks"])
@pytest.mark.parametrize(("discount", "penalty"), [(1.0, 0.0), (0.9, 0.0), (0.95, 100.0)])
def test_returns_to_go_are_discounted_sums_to_the_end_of_the_episode(walks, storage, discount, penalty):
    dataset, episodes = walks
    conditions = Conditions(returns_to_go=True, discount=discount, termination_penalty=penalty)
    batch = read(make_reader(dataset, storage, padding="end", conditions=conditions), 200)
    seen = set()
    for x, got in zip(batch.x.numpy(), batch.returns_to_go.numpy(), strict=True):
        number, first = find_window(x)
        rewards = episodes[number].rewards[first:].astype(np.float64)
        rewards[-1] -= penalty * episodes[number].terminated
        expected = (rewards * discount ** np.arange(len(rewards))).sum()
        assert got == pytest.approx(expected, rel=1e-5, abs=1e-5)
        seen.add(number)
    assert len({episodes[number].terminated for number in seen}) == 2


@pytest.mark.parametrize("values", [{"discount": 0.0}, {"discount": 1.01}, {"termination_penalty": -1.0}])
def test_conditions_out_of_range_are_refused(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        Conditions(**values)


@pytest.mark.parametrize("storage", ["mapped", "memory", "blocks"])
def test_tasks_come_with_their_windows_and_by_their_weights(tmp_path, storage):
    tasks = tuple(Task(name, weight, "uuid", {}, 2) for name, weight in (("a", 3.0), ("b", 1.0), ("c", 0.0)))
    manifest = make_manifest(tasks=tasks)

    create_dataset(tmp_path, manifest)
    for unit in range(6):
        write_unit(tmp_path, manifest, unit, [make_walk(unit, 10 + 20 * unit, task=unit // 2)])
    batch = read(make_reader(open_dataset(tmp_path), storage), 8000)
    numbers = np.array([find_window(x)[0] for x in batch.x.numpy()])
    np.testing.assert_array_equal(batch.task.numpy(), numbers // 2)
    assert batch.task.dtype == torch.int64
    assert np.mean(numbers // 2 == 0) == pytest.approx(0.75, abs=0.03)
    assert not (numbers >= 4).any()
    within = Counter(numbers.tolist())  # windows of a task are equally likely
    assert within[1] / within[0] == pytest.approx(26 / 6, rel=0.15)


@pytest.mark.parametrize("storage", ["mapped", "memory", "blocks"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_rows_are_those_of_the_whole_batch(plain_walks, storage, world_size):
    goal = "window_end" if storage == "blocks" else "future"
    conditions = Conditions(goal=goal, returns_to_go=True)
    reader = make_reader(plain_walks, storage, padding="end", conditions=conditions)
    whole = read(reader, 31)
    for rank in range(world_size):
        part = read(reader, 31, rows=slice(rank, None, world_size))
        for name in ("x", "mask", "goal", "returns_to_go"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[rank::world_size])


@pytest.mark.parametrize("storage", ["mapped", "memory"])
def test_shards_play_no_part(tmp_path, storage):
    lengths = [length for unit in LENGTHS for length in unit]
    write_walks(tmp_path / "many", [[length] for length in lengths])
    write_walks(tmp_path / "one", [lengths])
    write_walks(tmp_path / "late", LENGTHS, only=(2, 0))
    write_snapshot(open_dataset(tmp_path / "late"))
    write_walks(tmp_path / "late", LENGTHS, only=(3, 1))  # its shards are not in the order of units
    write_walks(tmp_path / "joined", LENGTHS)
    compact(open_store(tmp_path / "joined"))
    conditions = Conditions(goal="future", returns_to_go=True)
    batches = [
        read(make_reader(open_dataset(tmp_path / name), storage, padding="short", conditions=conditions))
        for name in ("one", "many", "late", "joined")
    ]
    for batch in batches[1:]:
        assert_equal_batches(batch, batches[0])


@pytest.mark.parametrize("storage", ["mapped", "memory", "blocks"])
@pytest.mark.parametrize("padding", ["skip", "end"])
def test_snapshot_pinned_before_other_units_were_joined_between_its_own(tmp_path, storage, padding):
    write_walks(tmp_path, LENGTHS, only=(0, 2))
    write_snapshot(open_dataset(tmp_path))
    goal = "episode_end" if storage == "blocks" else "future"
    conditions = Conditions(goal=goal, returns_to_go=True, discount=0.9, termination_penalty=3.0)
    before = read(make_reader(open_dataset(tmp_path, snapshot=0), storage, padding=padding, conditions=conditions))
    old = list((tmp_path / "shards").iterdir())
    write_walks(tmp_path, LENGTHS, only=(3, 1))
    assert compact(open_store(tmp_path)) == (4, 1)
    for path in old:
        path.unlink()
    pinned = open_dataset(tmp_path, snapshot=0)
    assert len(pinned.shards) == 1
    assert pinned.shards[0].num_rows > pinned.num_steps
    after = read(make_reader(pinned, storage, padding=padding, conditions=conditions))
    if storage != "blocks":
        assert_equal_batches(after, before)
        return
    episodes = [e for unit in LENGTHS for e in unit]
    for x, goal, returns in zip(after.x.numpy(), after.goal.numpy(), after.returns_to_go, strict=True):
        number, first = find_window(x)
        walk = make_walk(number, episodes[number])
        assert number in (0, 1, 2, 5, 6)
        np.testing.assert_array_equal(x, make_window(walk, first, 5, 1)[0])
        np.testing.assert_array_equal(goal, walk.observations[-1])
        rewards = walk.rewards[first:].astype(np.float64)
        rewards[-1] -= 3.0 * walk.terminated
        assert float(returns) == pytest.approx((rewards * 0.9 ** np.arange(len(rewards))).sum(), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("storage", ["mapped", "memory", "blocks"])
@pytest.mark.parametrize("name", ["observation", "action"])
def test_flipped_bit_is_found_before_a_batch_has_it(tmp_path, storage, name):
    write_walks(tmp_path, [[40]] * 6)
    dataset = open_dataset(tmp_path)
    path = flip_bit(dataset, 3, name, 20)

    def read_many(*, verify):
        reader = _small_blocks(dataset, verify) if storage == "blocks" else make_reader(dataset, storage, verify=verify)
        for step in range(60):
            numbers = [find_window(x)[0] for x in reader.read(step, 32, 5, np.random.default_rng(step)).x.numpy()]
            if verify:
                assert 3 not in numbers
        return numbers

    read_many(verify=False)
    with pytest.raises(DataError, match=rf"{path}: expected checksum .* damaged") as caught:
        read_many(verify=True)
    assert "\n" not in str(caught.value)


def _small_blocks(dataset, verify):
    index = WindowIndex(dataset, 1)
    size = {"block_bytes": 20 * 20, "num_pool_blocks": 2}
    return BlockReader(dataset, NAMES, index, IDENTITY, Conditions(), CPU, max_horizon=6, verify=verify, **size)


@pytest.mark.parametrize("storage", ["memory", "blocks"])
@pytest.mark.parametrize("verify", [False, True])
def test_shard_that_is_truncated_or_gone_is_an_error_without_mapping(tmp_path, storage, verify):
    write_walks(tmp_path, [[40], [40]])
    dataset = open_dataset(tmp_path)
    path = tmp_path / dataset.shards[1].name
    path.chmod(0o644)
    os.truncate(path, dataset.shards[1].offsets["observation"] + 100)
    with pytest.raises(DataError, match=rf"{path}: expected {dataset.shards[1].num_bytes} bytes, .* truncated"):
        read(make_reader(dataset, storage, verify=verify))
    path.unlink()
    with pytest.raises(DataError, match=rf"{path}: the shard is gone"):
        read(make_reader(dataset, storage, verify=verify))


TRUNCATE_WHILE_MAPPED = """
    import os, sys
    import numpy as np
    from walks import IDENTITY, NAMES
    from diffplan.data.windows import mapped_windows
    from diffplan.data.format.dataset import open_dataset
    from diffplan.data.windows.readers import make_window_reader
    from diffplan.data.windows.window_index import WindowIndex
    from diffplan.errors import DataError

    mapped_windows.SIZE_CHECK_SECONDS = 0
    dataset = open_dataset(sys.argv[1])
    index = WindowIndex(dataset, 1)
    reader = make_window_reader(dataset, NAMES, index, IDENTITY, storage="mapped", max_horizon=5)
    reader.read(0, 32, 5, np.random.default_rng(0))
    path = os.path.join(sys.argv[1], dataset.shards[1].name)
    os.chmod(path, 0o644)
    os.truncate(path, 10)
    for step in range(3):
        try:
            reader.read(1, 32, 5, np.random.default_rng(1))
        except DataError as error:
            print("refused:", error)
"""


def test_shard_that_is_truncated_while_mapped_is_an_error_and_no_crash(tmp_path):
    write_walks(tmp_path, [[4000], [4000]])
    paths = [str(Path(__file__).parent), *sys.path]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(TRUNCATE_WHILE_MAPPED), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr  # a signal would be negative
    refused = done.stdout.splitlines()
    assert len(refused) == 3
    assert all("got 10; it was changed" in line and str(tmp_path) in line for line in refused)


def test_shards_swept_while_mapped_are_read_on(tmp_path, monkeypatch):
    monkeypatch.setattr("diffplan.data.windows.mapped_windows.SIZE_CHECK_SECONDS", 0.0)
    write_walks(tmp_path, LENGTHS)
    reader = make_reader(open_dataset(tmp_path), "mapped")
    before = read(reader)
    for path in (tmp_path / "shards").iterdir():
        path.unlink()
    assert_equal_batches(read(reader), before)


@pytest.mark.parametrize(
    ("available", "world_size", "expected"),
    [
        (4, 1, "memory"),
        (3.9, 1, "mapped"),
        (4, 2, "mapped"),
        (8, 2, "memory"),
        (0.0, 1, "blocks"),
    ],
)
def test_storage_is_chosen_by_the_memory_available(plain_walks, monkeypatch, available, world_size, expected):
    copy_bytes = 2 * plain_walks.num_bytes  # so that shards fit where their copy does not
    monkeypatch.setattr(readers, "_available_memory_bytes", lambda: available * copy_bytes)
    assert choose_storage(copy_bytes, plain_walks, CPU, world_size) == expected


def test_storage_of_a_graphics_card_is_its_own_memory(plain_walks, monkeypatch):
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4000, 8000))
    monkeypatch.setattr(readers, "_available_memory_bytes", lambda: 10**9)
    assert choose_storage(1000, plain_walks, cuda, 8) == "memory"  # each has a card of its own
    assert choose_storage(1001, plain_walks, cuda, 1) == "mapped"
    monkeypatch.setattr(readers, "_available_memory_bytes", lambda: 0)
    assert choose_storage(1001, plain_walks, cuda, 1) == "blocks"


def test_auto_takes_the_reader_that_was_chosen(plain_walks, monkeypatch):
    assert isinstance(make_reader(plain_walks, "auto"), MemoryReader)
    copy_bytes = plain_walks.num_steps * 5 * 4
    monkeypatch.setattr(readers, "_available_memory_bytes", lambda: max(3 * copy_bytes, 2 * plain_walks.num_bytes))
    monkeypatch.setattr(readers, "MEMORY_SHARE", 0.01)
    assert isinstance(make_reader(plain_walks, "auto"), MappedReader)
    monkeypatch.setattr(readers, "_available_memory_bytes", lambda: 0)
    assert isinstance(make_reader(plain_walks, "auto"), BlockReader)


def test_available_memory_is_a_plausible_number():
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 2**20 < readers._available_memory_bytes() <= total
