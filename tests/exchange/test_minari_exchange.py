import functools
import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np
import pyarrow.dataset
import pytest
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from minari_sources import (
    assert_trees_equal,
    make_buffer,
    make_mujoco_buffers,
    make_pointmaze_buffers,
    save,
    save_mujoco,
    save_pointmaze,
    unbounded,
)

from diffplan.behaviors.collection import UnitCollector, make_manifest
from diffplan.config import CollectionConfig, EnvConfig
from diffplan.data.exchange.minari import export_minari, import_minari
from diffplan.data.exchange.minari_export import read_columns
from diffplan.data.format.commit import list_committed_units
from diffplan.data.format.dataset import TrajectoryDataset, open_dataset
from diffplan.data.format.writer import create_dataset, write_unit
from diffplan.data.maintenance.verification import drop_damage, find_damage
from diffplan.errors import DataError
from diffplan.tasks.maze2d.environment import ROLES
from diffplan.types import Episode

FORMATS = ("hdf5", "arrow", "parquet")
ENV = EnvConfig(env_id="diffplan/Maze2D-UMaze-v1")


def columns_of(dataset: TrajectoryDataset, episode: int) -> dict[str, np.ndarray]:
    return read_columns(dataset, episode, dataset.episodes[episode])


def assert_minari_equal(found_id: str, expected_id: str) -> None:
    found, expected = minari.load_dataset(found_id), minari.load_dataset(expected_id)
    assert found.observation_space == expected.observation_space
    assert found.action_space == expected.action_space
    assert found.total_steps == expected.total_steps
    for ours, theirs in zip(found.iterate_episodes(), expected.iterate_episodes(), strict=True):
        for name in ("observations", "actions", "rewards", "terminations", "truncations"):
            assert_trees_equal(getattr(ours, name), getattr(theirs, name), where=name)
        assert_trees_equal(ours.infos, theirs.infos or {}, where="infos")


@pytest.mark.parametrize("data_format", FORMATS)
def test_mujoco_layout_is_imported_bit_by_bit(data_format: str, tmp_path: Path) -> None:
    dataset = import_minari(save_mujoco(data_format), tmp_path / "out", episodes_per_unit=2)

    assert {c.name: (c.shape, c.dtype, c.has_final) for c in dataset.manifest.columns} == {
        "observation": ((11,), "float64", True),
        "action": ((3,), "float32", False),
        "reward": ((), "float64", False),
        "infos.contact": ((), "bool", True),
        "infos.reward.ctrl": ((2,), "float32", True),
        "infos.x_position": ((1,), "float64", True),
        "infos.x_velocity": ((), "float64", True),
    }
    for k, buffer in enumerate(make_mujoco_buffers()):
        columns, episode = columns_of(dataset, k), dataset.episodes[k]
        assert_trees_equal(
            columns,
            {
                "observation": buffer.observations,
                "action": buffer.actions,
                "reward": buffer.rewards,
                "infos.contact": buffer.infos["contact"],
                "infos.reward.ctrl": buffer.infos["reward"]["ctrl"],
                "infos.x_position": buffer.infos["x_position"],
                "infos.x_velocity": buffer.infos["x_velocity"],
            },
        )
        assert (episode.seed, episode.options) == (buffer.seed, buffer.options)
        assert (episode.terminated, episode.truncated) == (buffer.terminations[-1], buffer.truncations[-1])
        assert episode.behavior == "SAC"
    assert len(dataset.episodes) == 3
    assert dataset.snapshot == 0
    assert dataset.env == replace(ROLES, env_id="diffplan/Maze2D-UMaze-v1", env_kwargs=dataset.env.env_kwargs)
    assert dataset.manifest.source["metadata"]["author"] == ["A. N. Author"]
    assert dataset.manifest.source["metadata"]["requirements"] == ["numpy>=1"]
    assert (dataset.manifest.action_low, dataset.manifest.action_high) == ([-1.0] * 3, [1.0] * 3)


@pytest.mark.parametrize("data_format", FORMATS)
def test_pointmaze_layout_keeps_goals_as_columns_of_their_own(data_format: str, tmp_path: Path) -> None:
    dataset = import_minari(save_pointmaze(data_format), tmp_path / "out")
    # An environment that no task claims: what its columns mean is not known.
    assert dataset.env == EnvConfig(env_id="PointMaze_UMaze-v3", env_kwargs=dataset.env.env_kwargs)
    for k, buffer in enumerate(make_pointmaze_buffers()):
        assert_trees_equal(
            columns_of(dataset, k),
            {
                "observation": buffer.observations["observation"],
                "observation.achieved_goal": buffer.observations["achieved_goal"],
                "observation.desired_goal": buffer.observations["desired_goal"],
                "action": buffer.actions,
                "reward": buffer.rewards,
                **{f"infos.{name}": values for name, values in buffer.infos.items()},
            },
        )


@pytest.mark.parametrize("save_dataset", [save_mujoco, save_pointmaze])
def test_an_export_equals_the_dataset_it_came_from(save_dataset: Any, tmp_path: Path) -> None:
    source = save_dataset("hdf5")
    dataset = import_minari(source, tmp_path / "out", episodes_per_unit=2)
    target = export_minari(dataset, "mine/copy-v1")

    assert target == Path(os.environ["MINARI_DATASETS_PATH"]) / "mine/copy-v1"
    assert "mine/copy-v1" in minari.list_local_datasets()
    assert_minari_equal("mine/copy-v1", source)
    copy, original = minari.load_dataset("mine/copy-v1"), minari.load_dataset(source)
    kept = ("author", "algorithm_name", "code_permalink", "description", "requirements", "env_spec")
    for name in kept:
        assert copy.storage.metadata.get(name) == original.storage.metadata.get(name)
    episodes = range(copy.total_episodes)
    assert [m.get("seed") for m in copy.storage.get_episode_metadata(episodes)] == [
        m.get("seed") for m in original.storage.get_episode_metadata(episodes)
    ]
    assert import_minari("mine/copy-v1", tmp_path / "again").content_hash() == dataset.content_hash()


def test_all_formats_give_the_same_content(tmp_path: Path) -> None:
    hashes = {f: import_minari(save_mujoco(f), tmp_path / f).content_hash() for f in FORMATS}
    assert len(set(hashes.values())) == 1, hashes


def test_collected_data_round_trips_and_works_in_minari(tmp_path: Path, minari_root: Path) -> None:
    collection = CollectionConfig(
        behavior="waypoint:0.5,random:0.5", num_steps=160, episode_steps=40, episodes_per_unit=2
    )
    manifest = create_dataset(tmp_path / "collected", make_manifest(ENV, collection))
    collector = UnitCollector(ENV, collection)
    for unit in range(collection.num_units):
        write_unit(tmp_path / "collected", manifest, unit, collector.collect(unit))
    dataset = open_dataset(tmp_path / "collected")
    calls: list[tuple[int, int]] = []
    export_minari(dataset, "maze2d/umaze-v0", on_progress=lambda *done: calls.append(done))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]

    loaded = minari.load_dataset("maze2d/umaze-v0")
    assert loaded.observation_space == unbounded(4, dtype=np.float32)
    assert loaded.action_space == spaces.Box(-1, 1, (2,), np.float32)
    episodes = list(loaded.iterate_episodes())
    assert [len(e) for e in episodes] == [40] * 4
    for i, episode in enumerate(episodes):
        columns = columns_of(dataset, i)
        assert_trees_equal(episode.observations, columns["observation"])
        assert_trees_equal(episode.infos["goal"], columns["goal"])
        assert loaded.observation_space.contains(episode.observations[-1])
    assert len(loaded.sample_episodes(2)) == 2
    best = max(e.rewards.sum() for e in episodes)
    assert loaded.filter_episodes(lambda e: e.rewards.sum() == best).total_episodes >= 1
    env = loaded.recover_environment()
    assert isinstance(env, gymnasium.Env)
    assert (env.spec.id, env.spec.max_episode_steps) == ("diffplan/Maze2D-UMaze-v1", 40)
    assert loaded.recover_environment(eval_env=True).spec.max_episode_steps == 300
    seeds = [m["seed"] for m in loaded.storage.get_episode_metadata(range(4))]
    assert seeds == [e.seed for e in dataset.episodes]

    again = import_minari(minari_root / "maze2d/umaze-v0", tmp_path / "again", episodes_per_unit=3)
    assert again.content_hash() == dataset.content_hash()
    assert again.env == dataset.env
    assert again.manifest.columns == dataset.manifest.columns
    assert again.manifest.source["origin"]["collection"]["behavior"] == collection.behavior
    # A second generation keeps the record.
    export_minari(again, "maze2d/umaze-v1")
    assert import_minari("maze2d/umaze-v1", tmp_path / "third").content_hash() == dataset.content_hash()


def test_episode_numbers_behaviors_and_awkward_options_survive(tmp_path: Path) -> None:
    dataset = import_minari(save_mujoco(), tmp_path / "first")
    manifest = create_dataset(tmp_path / "odd", dataset.manifest)
    options = [{}, {"cells": [[1, 2], [3]], "none": None}, {"mixed": [1, 2.5], "a/b": "x", "names": ["u", "v"]}]
    options[1]["b"] = options[1].pop("cells")  # names out of order
    episodes = []
    for i, record in enumerate(dataset.episodes):
        columns = columns_of(dataset, i)
        episode = Episode(
            episode_index=3 * (2 - i) + 4,
            seed=-(2**63) if i else 2**63 - 1,
            behavior=f"b{i}",
            observations=columns.pop("observation"),
            actions=columns.pop("action"),
            rewards=columns.pop("reward"),
            terminated=record.terminated,
            truncated=record.truncated,
            columns=columns,
            task=0,
        )
        episodes.append(replace(episode, options=options[i]))
    write_unit(tmp_path / "odd", manifest, 0, episodes)
    odd = open_dataset(tmp_path / "odd")
    export_minari(odd, "odd/one-v0")
    again = import_minari("odd/one-v0", tmp_path / "again")
    assert [e.options for e in again.episodes] == options
    assert [e.episode_index for e in again.episodes] == [10, 7, 4]
    assert again.content_hash() == odd.content_hash()


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize(
    ("space", "bounds", "values"),
    [
        (spaces.Discrete(3, start=2), ([2.0], [4.0]), np.array([2, 4, 3])),
        (spaces.MultiDiscrete([2, 5]), ([0.0, 0.0], [1.0, 4.0]), np.array([[1, 4], [0, 0], [1, 2]])),
        (spaces.MultiBinary(2), ([0.0] * 2, [1.0] * 2), np.array([[1, 0], [0, 0], [1, 1]], dtype=np.int8)),
    ],
)
def test_discrete_actions_and_images(
    data_format: str, space: spaces.Space, bounds: tuple[Any, Any], values: np.ndarray, tmp_path: Path
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 2, 2), dtype=np.uint8)
    source = f"grid/{data_format}-v0"
    save(
        source,
        [make_buffer(images, values, np.arange(3.0))],
        spaces.Box(0, 255, (3, 2, 2), np.uint8),
        space,
        data_format=data_format,
    )
    dataset = import_minari(source, tmp_path / "out", env=ENV)
    columns = columns_of(dataset, 0)
    assert columns["action"].dtype == np.int64
    assert np.array_equal(columns["action"], values)
    assert_trees_equal(columns["observation"], images)
    assert (dataset.manifest.action_low, dataset.manifest.action_high) == bounds
    export_minari(dataset, "grid/copy-v0")
    assert_minari_equal("grid/copy-v0", source)


def test_jpeg_images_are_exported_without_another_loss(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    for data_format in ("hdf5", "arrow"):
        save(
            f"image/{data_format}-v0",
            [make_buffer(images, np.zeros((2, 1)), np.zeros(2))],
            spaces.Box(0, 255, (32, 32, 3), np.uint8),
            unbounded(1),
            data_format=data_format,
        )
    dataset = import_minari("image/hdf5-v0", tmp_path / "out", env=ENV)
    assert import_minari("image/arrow-v0", tmp_path / "arrow", env=ENV).content_hash() == dataset.content_hash()
    export_minari(dataset, "image/copy-v0")
    assert_minari_equal("image/copy-v0", "image/hdf5-v0")


def test_a_dict_without_observation_is_joined_and_split_again(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    space = spaces.Dict(
        {
            "pose": spaces.Dict({"z": unbounded(1), "a": unbounded(2, dtype=np.float32)}),
            "camera": spaces.Box(0, 255, (2, 2), np.uint8),
            "speed": unbounded(2),
        }
    )
    observations = {
        "pose": {"z": generator.standard_normal((4, 1)), "a": generator.standard_normal((4, 2)).astype(np.float32)},
        "camera": generator.integers(0, 256, (4, 2, 2), dtype=np.uint8),
        "speed": generator.standard_normal((4, 2)),
    }
    save("dict/joined-v0", [make_buffer(observations, np.zeros((3, 1)), np.zeros(3))], space, unbounded(1))
    dataset = import_minari("dict/joined-v0", tmp_path / "out", env=ENV)
    joined = np.concatenate([observations["pose"]["a"], observations["pose"]["z"], observations["speed"]], axis=1)
    columns = columns_of(dataset, 0)
    assert_trees_equal(columns["observation"], joined)
    assert_trees_equal(columns["observation.camera"], observations["camera"])
    export_minari(dataset, "dict/copy-v0")
    assert_minari_equal("dict/copy-v0", "dict/joined-v0")


def test_float32_and_skip_infos(tmp_path: Path) -> None:
    dataset = import_minari(save_mujoco(), tmp_path / "out", float32=True, skip_infos=True)
    assert [(c.name, c.dtype) for c in dataset.manifest.columns] == [
        ("observation", "float32"),
        ("action", "float32"),
        ("reward", "float32"),
    ]
    buffer = make_mujoco_buffers()[2]
    assert_trees_equal(columns_of(dataset, 2)["observation"], buffer.observations.astype(np.float32))
    export_minari(dataset, "small/copy-v0")
    assert import_minari("small/copy-v0", tmp_path / "again").content_hash() == dataset.content_hash()


def test_long_arrow_episodes_are_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    length = 140_000  # more than Arrow puts into one batch
    # With threads, as Minari 0.5.4 has it, Arrow may write the pieces of long episodes in any order.
    in_order = functools.partial(pyarrow.dataset.write_dataset, use_threads=False, preserve_order=True)
    monkeypatch.setattr(pyarrow.dataset, "write_dataset", in_order)
    observations = np.arange(length + 1, dtype=np.float64)[:, None]
    save(
        "long/arrow-v0",
        [make_buffer(observations, observations[1:], np.zeros(length))],
        unbounded(1),
        unbounded(1),
        data_format="arrow",
    )
    dataset = import_minari("long/arrow-v0", tmp_path / "out", env=ENV)
    assert dataset.num_steps == length
    assert_trees_equal(columns_of(dataset, 0)["observation"], observations)


def test_actions_beyond_their_space_are_kept_and_counted(tmp_path: Path) -> None:
    actions = np.array([[0.5], [1.5], [-3.0]])
    save(
        "bad/actions-v0",
        [make_buffer(np.zeros((4, 4)), actions, np.zeros(3))],
        unbounded(4),
        spaces.Box(-1, 1, (1,), np.float64),
    )
    with pytest.warns(UserWarning, match=r"2 of 3 actions lie outside the action space, by up to 2;") as caught:
        dataset = import_minari("bad/actions-v0", tmp_path / "out", env=ENV)
    assert len(caught) == 1
    assert_trees_equal(columns_of(dataset, 0)["action"], actions)


def _nan(values: np.ndarray, row: int) -> np.ndarray:
    values = values.copy()
    values[row] = np.nan
    return values


def plain(**changed: Any) -> Any:
    """An episode of three steps, with some of its arrays replaced."""
    arrays = {"observations": np.zeros((4, 2)), "actions": np.zeros((3, 1)), "rewards": np.zeros(3)}
    return make_buffer(**{**arrays, **changed})


GOOD = plain()


@pytest.mark.parametrize(
    ("buffers", "message"),
    [
        ([GOOD, plain(observations=_nan(np.zeros((4, 2)), 3))], "episode 1: observations: .*step 3"),
        ([GOOD, plain(actions=_nan(np.zeros((3, 1)), 1))], "episode 1: actions: .*step 1"),
        ([plain(rewards=_nan(np.zeros(3), 2))], "episode 0: rewards: .*step 2"),
        ([plain(observations=np.zeros((3, 2)))], "episode 0: observations: expected 4 rows"),
        ([GOOD, plain(infos={"a": np.zeros(4)})], "infos/a; leave.*--skip_infos"),
        ([plain(infos={"task": ["a", "b", "c", "d"]})], "infos/task: expected numbers.*--skip_infos"),
        ([plain(infos={"x": np.zeros(2)})], "infos/x: expected 3 or 4 rows.*--skip_infos"),
        (
            [plain(infos={"x": np.zeros((4, 2))}), plain(infos={"x": np.zeros((4, 3))})],
            r"episode 1: infos/x: expected shape \(4, 2\), as in the first episode, got shape \(4, 3\).*--skip_infos",
        ),
        (
            [plain(rewards=np.arange(3)), GOOD],
            "episode 1: rewards: expected int64, as in the first episode, got float64",
        ),
    ],
)
def test_what_cannot_be_stored_is_named(buffers: list[Any], message: str, tmp_path: Path) -> None:
    save("bad/one-v0", buffers, unbounded(2), unbounded(1))
    with pytest.raises(DataError, match=message) as caught:
        import_minari("bad/one-v0", tmp_path / "out", env=ENV)
    assert "\n" not in str(caught.value)


def test_an_end_in_the_middle_is_an_error(tmp_path: Path) -> None:
    buffer = plain()
    buffer.terminations[1] = True
    save("bad/end-v0", [buffer], unbounded(2), unbounded(1))
    with pytest.raises(DataError, match=r"episode 0: terminations: .*got one at step 1 of 3"):
        import_minari("bad/end-v0", tmp_path / "out", env=ENV)


def test_tuple_and_text_observations_are_errors(tmp_path: Path) -> None:
    tuples = spaces.Tuple((unbounded(2), unbounded(1)))
    save("bad/tuple-v0", [plain(observations=(np.zeros((4, 2)), np.zeros((4, 1))))], tuples, unbounded(1))
    with pytest.raises(DataError, match="observations: expected numbers of one shape, got a tuple"):
        import_minari("bad/tuple-v0", tmp_path / "out", env=ENV)
    text = spaces.Dict({"observation": unbounded(2), "mission": spaces.Text(5)})
    observations = {"observation": np.zeros((4, 2)), "mission": ["go"] * 4}
    for data_format in FORMATS:
        dataset_id = f"bad/text-{data_format}-v0"
        save(dataset_id, [plain(observations=observations)], text, unbounded(1), data_format=data_format)
        with pytest.raises(DataError, match="observations/mission: expected numbers of one shape, got text"):
            import_minari(dataset_id, tmp_path / "out", env=ENV)


def test_sources_that_are_not_there_or_broken(tmp_path: Path, minari_root: Path) -> None:
    with pytest.raises(DataError, match="minari download no/such-v0"):
        import_minari("no/such-v0", tmp_path / "out")
    with pytest.raises(DataError, match="got no directory"):
        import_minari(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="expected a Minari dataset"):
        import_minari(tmp_path / "empty", tmp_path / "out")

    for data_format, victim in (
        ("hdf5", "main_data.hdf5"),
        ("arrow", "1/part-0.arrow"),
        ("parquet", "1/part-0.parquet"),
    ):
        source = save_mujoco(data_format, name="cut")
        path = minari_root / source / "data" / victim
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(DataError, match=r"episode \d+ cannot be read") as caught:
            import_minari(source, tmp_path / f"out-{data_format}")
        assert "\n" not in str(caught.value)
    metadata = minari_root / save_mujoco(name="json") / "data/metadata.json"
    metadata.write_text(metadata.read_text()[:-20])
    with pytest.raises(DataError, match="expected a Minari dataset, got JSONDecodeError"):
        import_minari("mujoco/json/hdf5-v0", tmp_path / "out")
    save("no/env-v0", [GOOD], unbounded(2), unbounded(1))
    with pytest.raises(DataError, match="name it with --env"):
        import_minari("no/env-v0", tmp_path / "out")


def test_a_finished_import_is_a_no_op_and_another_source_an_error(tmp_path: Path, minari_root: Path) -> None:
    out = tmp_path / "out"
    first = import_minari(save_mujoco(), out)
    before = sorted((p.name, p.stat().st_mtime_ns) for p in out.rglob("*"))
    again = import_minari(minari_root / "mujoco/hopper/hdf5-v0", out)
    assert sorted((p.name, p.stat().st_mtime_ns) for p in out.rglob("*")) == before
    assert (again.snapshot, again.content_hash()) == (first.snapshot, first.content_hash())
    with pytest.raises(DataError, match="float32 is False, now True"):
        import_minari("mujoco/hopper/hdf5-v0", out, float32=True)
    with pytest.raises(DataError, match="imported from another source"):
        import_minari(save_mujoco(name="other"), out)
    with pytest.raises(DataError, match="begun with another env"):
        import_minari("mujoco/hopper/hdf5-v0", out, env=EnvConfig(env_id="diffplan/Maze2D-Large-v1"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    with pytest.raises(DataError, match="got other files"):
        import_minari("mujoco/hopper/hdf5-v0", tmp_path / "full")


def test_exports_do_not_overwrite_and_leave_nothing_when_interrupted(tmp_path: Path, minari_root: Path) -> None:
    dataset = import_minari(save_mujoco(), tmp_path / "out")
    with pytest.raises(DataError, match="there is a Minari dataset of this id already"):
        export_minari(dataset, "mujoco/hopper/hdf5-v0")
    for bad in ("no-version", "../escape-v0", "a b-v0"):
        with pytest.raises(DataError, match="expected namespace/name-vN"):
            export_minari(dataset, bad)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_minari(dataset, "new/one-v0", on_progress=interrupt)
    assert list((minari_root / "new").iterdir()) == []
    script = f"""
        import os, signal
        from diffplan.data.format.dataset import open_dataset
        from diffplan.data.exchange.minari import export_minari
        kill = lambda done, total: os.kill(os.getpid(), signal.SIGKILL)
        export_minari(open_dataset({str(tmp_path / "out")!r}), "new/one-v0", on_progress=kill)
    """
    assert _run(script).returncode == -signal.SIGKILL
    assert "new/one-v0" not in minari.list_local_datasets()
    with pytest.raises(FileNotFoundError):
        minari.load_dataset("new/one-v0")
    export_minari(dataset, "new/one-v0")
    assert minari.load_dataset("new/one-v0").total_episodes == 3


@pytest.mark.parametrize("data_format", ["hdf5", "parquet"])
def test_an_import_that_was_killed_goes_on(data_format: str, tmp_path: Path) -> None:
    lengths = tuple(range(1, 12))
    source = save_mujoco(data_format, lengths)
    out = tmp_path / "out"
    script = f"""
        import os, signal
        from diffplan.data.format import writer
        from diffplan.data.exchange import unit_import
        from diffplan.data.exchange.minari import import_minari
        commit_unit = writer.commit_unit
        def die_before_commit(store, record):
            if record.unit == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return commit_unit(store, record)
        writer.commit_unit = die_before_commit
        import_minari({source!r}, {str(out)!r}, episodes_per_unit=2)
    """
    assert _run(script).returncode == -signal.SIGKILL
    store = open_dataset(out).store
    assert list_committed_units(store) == [0, 1, 2]
    calls: list[int] = []
    dataset = import_minari(source, out, episodes_per_unit=2, on_progress=lambda done, total: calls.append(done))
    assert calls == [2, 4, 6, 8, 10, 11]
    assert [e.episode_index for e in dataset.episodes] == list(range(11))
    assert dataset.episodes.length.tolist() == list(lengths)
    assert dataset.content_hash() == import_minari(source, tmp_path / "whole").content_hash()


def test_a_unit_that_was_damaged_is_imported_again(tmp_path: Path) -> None:
    dataset = import_minari(save_mujoco(), tmp_path / "out", episodes_per_unit=1)
    store, before = dataset.store, dataset.content_hash()
    assert [damage for damage in find_damage(store) if damage] == []
    shard = tmp_path / "out" / dataset.shards[1].name
    content = bytearray(shard.read_bytes())
    content[dataset.shards[1].offsets["observation"]] ^= 1
    shard.chmod(0o644)
    shard.write_bytes(content)
    damages = [damage for damage in find_damage(store) if damage]
    assert drop_damage(store, damages) == (1,)
    again = import_minari("mujoco/hopper/hdf5-v0", tmp_path / "out", episodes_per_unit=1)
    assert again.content_hash() == before
    assert [damage for damage in find_damage(store) if damage] == []


def _run(script: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(p for p in sys.path if p)
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_reading_datasets_imports_neither_h5py_nor_minari() -> None:
    script = """
        import sys
        import diffplan.data.format.dataset, diffplan.data.windows.mapped_windows, diffplan.data.exchange
        raise SystemExit(", ".join({"h5py", "minari"} & set(sys.modules)) or None)
    """
    result = _run(script)
    assert result.returncode == 0, result.stderr


FLOATS = st.sampled_from([np.float16, np.float32, np.float64])
NUMBERS = st.sampled_from(
    [np.float16, np.float32, np.float64, np.int8, np.int32, np.int64, np.uint8, np.uint16, np.bool_]
)
SHAPES = st.lists(st.integers(1, 3), max_size=2).map(tuple)


@st.composite
def minari_episodes(draw: Any) -> tuple[list[Any], spaces.Space, spaces.Space]:
    """A few episodes of one random structure."""
    lengths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    names = st.sampled_from(["a", "b", "observation", "z"])

    def arrays(dtype: Any, shape: tuple[int, ...], *, finite: bool) -> Any:
        elements = hnp.from_dtype(np.dtype(dtype), allow_nan=not finite, allow_infinity=not finite)
        if finite:
            elements = elements.filter(lambda value: abs(float(value)) <= 1e150)
        return lambda rows: draw(hnp.arrays(dtype, (rows, *shape), elements=elements))

    if draw(st.booleans()):
        leaves = {n: (draw(FLOATS), (draw(st.integers(1, 3)),)) for n in draw(st.sets(names, min_size=1, max_size=3))}
        space = spaces.Dict({n: unbounded(*shape, dtype=dtype) for n, (dtype, shape) in leaves.items()})
        makers = {n: arrays(dtype, shape, finite=True) for n, (dtype, shape) in leaves.items()}
        observe = lambda rows: {n: make(rows) for n, make in makers.items()}  # noqa: E731
    else:
        dtype, shape = draw(FLOATS), draw(SHAPES)
        space = unbounded(*shape, dtype=dtype)
        observe = arrays(dtype, shape, finite=True)
    action_dtype, action_shape = draw(FLOATS), draw(SHAPES)
    act = arrays(action_dtype, action_shape, finite=True)
    infos = {
        n: arrays(draw(NUMBERS), draw(SHAPES), finite=False) for n in draw(st.sets(st.sampled_from("pqr"), max_size=2))
    }
    extra_rows = draw(st.sampled_from([0, 1]))
    seeds = st.none() | st.integers(0, 2**63 - 1)
    buffers = []
    for length in lengths:
        info = {n: make(length + extra_rows) for n, make in infos.items()}
        buffers.append(
            make_buffer(
                observe(length + 1),
                act(length),
                arrays(np.float64, (), finite=True)(length),
                terminated=draw(st.booleans()),
                truncated=draw(st.booleans()),
                infos={**info, "deep": {"er": info}} if info else None,
                seed=draw(seeds),
            )
        )
    return buffers, space, unbounded(*action_shape, dtype=action_dtype)


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(data=minari_episodes())
def test_minari_to_ours_to_minari_is_the_identity(
    data: tuple[list[Any], spaces.Space, spaces.Space], tmp_path_factory: pytest.TempPathFactory
) -> None:
    buffers, observation_space, action_space = data
    tmp_path = tmp_path_factory.mktemp("property")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
        save("any/source-v0", buffers, observation_space, action_space)
        dataset = import_minari("any/source-v0", tmp_path / "out", env=ENV, episodes_per_unit=2)
        export_minari(dataset, "any/copy-v0")
        assert_minari_equal("any/copy-v0", "any/source-v0")
        copy = minari.load_dataset("any/copy-v0")
        metadata = copy.storage.get_episode_metadata(range(len(buffers)))
        assert [m.get("seed") for m in metadata] == [b.seed for b in buffers]
        for episode, buffer in zip(copy.iterate_episodes(), buffers, strict=True):
            assert_trees_equal(episode.observations, buffer.observations)
            assert_trees_equal(episode.terminations, buffer.terminations)
            assert_trees_equal(episode.infos, buffer.infos or {})
        assert import_minari("any/copy-v0", tmp_path / "again").content_hash() == dataset.content_hash()


def test_the_record_in_the_metadata_is_checked(tmp_path: Path, minari_root: Path) -> None:
    export_minari(import_minari(save_mujoco(), tmp_path / "out"), "mine/copy-v0")
    path = minari_root / "mine/copy-v0/data/metadata.json"
    metadata = json.loads(path.read_text())
    metadata["diffplan"]["layout"]["leaves"][0]["start"] = 1
    path.write_text(json.dumps(metadata))
    with pytest.raises(DataError, match="no layout of columns"):
        import_minari("mine/copy-v0", tmp_path / "again")


def test_episodes_in_other_files_are_refused(tmp_path: Path) -> None:
    import h5py

    where = Path(minari.load_dataset(save_mujoco("hdf5")).storage.data_path) / "main_data.hdf5"
    other = tmp_path / "other.hdf5"
    with h5py.File(where, "a") as file, h5py.File(other, "w") as outside:
        file.copy("episode_0", outside)
        del file["episode_0/rewards"]
        file["episode_0/rewards"] = h5py.ExternalLink(str(other), "episode_0/rewards")
    with pytest.raises(DataError, match=r"rewards: expected data in the file itself, got a link to"):
        import_minari(where.parent.parent, tmp_path / "out")
    with h5py.File(where, "a") as file:
        del file["episode_0"]
        file["episode_0"] = h5py.ExternalLink(str(other), "episode_0")
    with pytest.raises(DataError, match=r"episode_0: expected data in the file itself, got a link to"):
        import_minari(where.parent.parent, tmp_path / "out")


@pytest.mark.parametrize("data_format", FORMATS)
def test_links_out_of_a_dataset_are_refused(data_format: str, tmp_path: Path) -> None:
    root = Path(minari.load_dataset(save_mujoco(data_format)).storage.data_path)
    name = "main_data.hdf5" if data_format == "hdf5" else "0"
    (root / name).rename(tmp_path / name)
    (root / name).symlink_to(tmp_path / name)
    with pytest.raises(DataError, match="expected a file of the dataset, got a link to"):
        import_minari(root.parent, tmp_path / "out")
