"""Every way in which values and episodes can be wrong or odd: refused when written, or kept and harmless."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_up_episodes import make_episode, make_manifest, require_undamaged

from diffplan.data.format.dataset import open_dataset
from diffplan.data.format.manifest import Manifest, make_columns
from diffplan.data.format.writer import create_dataset, write_unit
from diffplan.data.maintenance.verification import drop_damage, find_damage
from diffplan.data.windows.normalization import Normalizer
from diffplan.data.windows.window_index import WindowIndex
from diffplan.errors import DataError
from diffplan.storage.opening import open_store
from diffplan.types import Episode


def create(root: Path) -> Manifest:
    return create_dataset(root, make_manifest())


def changed(name: str, row: int, value: float) -> Episode:
    episode = make_episode(3, 6)
    values = getattr(episode, name).copy()
    values[row] = value
    return replace(episode, **{name: values})


REFUSED = {
    "nan_observation": (changed("observations", 2, np.nan), "expected finite float32 numbers, got .* in row 2; mend"),
    "infinite_observation": (changed("observations", 0, np.inf), "expected finite float32 numbers, got .* in row 0"),
    "nan_final_observation": (changed("observations", -1, np.nan), "after the last action: expected finite"),
    "nan_action": (changed("actions", 5, np.nan), "'action': expected finite .* row 5"),
    "infinite_action": (changed("actions", 1, -np.inf), "'action': expected finite .* row 1"),
    "nan_reward": (changed("rewards", 4, np.nan), "'reward': expected finite .* row 4"),
    "infinite_reward": (changed("rewards", 4, np.inf), "'reward': expected finite .* row 4"),
    "no_steps": (make_episode(3, 0), "at least one row"),
    "other_space": (replace(make_episode(3, 6), observations=np.zeros((7, 4), np.float32)), r"expected shape \(6, 3\)"),
    "no_final_observation": (
        replace(make_episode(3, 6), observations=np.zeros((6, 3), np.float32)),
        r"expected shape \(6, 3\)",
    ),
    "column_missing": (replace(make_episode(3, 6), columns={}), "'goal': expected shape .* got nothing"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_when_written(tmp_path, name):
    episode, words = REFUSED[name]
    manifest = create(tmp_path)
    with pytest.raises(DataError, match=rf"unit 8, episode 3, column .*{words}") as caught:
        write_unit(tmp_path, manifest, 8, [make_episode(2, 4), episode])
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["_dataset.json"]


def constant_dimension() -> Episode:
    episode = make_episode(3, 6)
    observations = episode.observations.copy()
    observations[:, 1] = 7.0
    return replace(episode, observations=observations)


KEPT = {
    "outlier": changed("observations", 2, 1e30),
    "denormal": changed("observations", 2, 1e-42),
    "action_outside_the_space": changed("actions", 2, 5.0),
    "constant_dimension": constant_dimension(),
    "both_flags": make_episode(3, 6, terminated=True, truncated=True),
    "no_end_flag": make_episode(3, 6, terminated=False, truncated=False),
    "one_step": make_episode(3, 1),
}


@pytest.mark.parametrize("name", KEPT)
def test_kept_as_it_is_with_finite_statistics(tmp_path, name):
    episode = KEPT[name]
    manifest = create(tmp_path)
    write_unit(tmp_path, manifest, 0, [episode])
    dataset = open_dataset(tmp_path)
    np.testing.assert_array_equal(dataset.episode_column(0, "observation"), episode.observations[:-1])
    np.testing.assert_array_equal(dataset.episode_column(0, "action"), episode.actions)
    record = dataset.episodes[0]
    assert (record.terminated, record.truncated) == (episode.terminated, episode.truncated)
    statistics = [dataset.statistics[column] for column in ("observation", "action")]
    for kind in ("limits", "gaussian", "quantile"):
        normalizer = Normalizer.fit(statistics, kind)
        rows = np.concatenate([episode.observations[:-1], episode.actions], axis=1)
        assert np.isfinite(normalizer.scale).all()
        assert np.isfinite(normalizer.normalize(rows)).all(), kind
    require_undamaged(tmp_path)


def test_all_episodes_shorter_than_the_horizon(tmp_path):
    manifest = create(tmp_path)
    write_unit(tmp_path, manifest, 0, [make_episode(0, 3), make_episode(1, 4)])
    index = WindowIndex(open_dataset(tmp_path), stride=1)
    assert index.count(4) == 1
    assert index.num_skipped_episodes(4) == 1
    with pytest.raises(DataError, match=rf"{tmp_path}: a window of horizon 5 .* longest episode has 4; take a shorter"):
        index.count(5)


def test_episode_number_twice_in_a_unit(tmp_path):
    manifest = create(tmp_path)
    with pytest.raises(DataError, match=r"unit 0: expected episodes of different numbers, got \[1, 1\]"):
        write_unit(tmp_path, manifest, 0, [make_episode(1, 5), make_episode(1, 4)])
    assert not list((tmp_path / "shards").glob("*"))


def test_episode_number_in_two_units(tmp_path):
    manifest = create(tmp_path)
    write_unit(tmp_path, manifest, 0, [make_episode(1, 5)])
    write_unit(tmp_path, manifest, 1, [make_episode(1, 4)])
    words = rf"{tmp_path}: episode 1 occurs more than once, in the units 0 and 1; run .*--drop_damaged"
    for read in (open_dataset, require_undamaged):
        with pytest.raises(DataError, match=words):
            read(tmp_path)
    store = open_store(tmp_path)
    assert drop_damage(store, [damage for damage in find_damage(store) if damage]) == (1,)
    assert open_dataset(tmp_path).num_steps == 5
    require_undamaged(tmp_path)


UNREADABLE = {
    "unit_below_0": (-1, make_episode(3, 4), "expected a unit from 0 to 2147483647, got '-1'"),
    "unit_too_large": (2**31, make_episode(3, 4), "expected a unit from 0 to 2147483647, got '2147483648'"),
    "seed_too_large": (0, replace(make_episode(3, 4), seed=2**64), "episode 3 has the seed 18446744073709551616"),
    "task_too_large": (0, replace(make_episode(3, 4), task=2**15), "episode 3 has the task 32768"),
    "options_no_json": (0, replace(make_episode(3, 4), options={"goal": np.zeros(2)}), "ndarray is not JSON"),
    "options_nan": (0, replace(make_episode(3, 4), options={"goal": float("nan")}), "not JSON compliant"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_could_not_be_read_back_is_refused_when_written(tmp_path, name):
    unit, episode, words = UNREADABLE[name]
    with pytest.raises(DataError, match=rf"^unit {unit}: .*{words}.*mend what made the episodes$"):
        write_unit(tmp_path, create(tmp_path), unit, [episode])
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["_dataset.json"]


def test_numbers_of_numpy_are_numbers(tmp_path):
    episode = replace(make_episode(3, 4), episode_index=np.int64(3), seed=np.int32(7), terminated=np.bool_(True))
    write_unit(tmp_path, create(tmp_path), np.int64(2), [episode])
    (record,) = open_dataset(tmp_path).episodes
    assert (record.episode_index, record.seed, record.terminated) == (3, 7, True)


def test_numbers_that_models_cannot_have_are_kept_but_not_trained_on(tmp_path):
    columns = make_columns(3, 2, observation_dtype="float64")
    manifest = create_dataset(tmp_path, replace(make_manifest(), columns=columns))
    episode = make_episode(3, 6)
    observations = episode.observations.astype(np.float64)
    observations[2, 1] = 1e100
    write_unit(tmp_path, manifest, 0, [replace(episode, observations=observations)])
    dataset = open_dataset(tmp_path)
    np.testing.assert_array_equal(dataset.episode_column(0, "observation"), observations[:-1])
    for kind in ("limits", "gaussian", "quantile"):
        with pytest.raises(
            DataError, match=r"expected numbers up to 3\.403e\+38, got 1e\+100 in the data; .*again without"
        ):
            Normalizer.fit([dataset.statistics["observation"]], kind)


def test_unit_twice_is_committed_once(tmp_path):
    manifest = create(tmp_path)
    first = write_unit(tmp_path, manifest, 0, [make_episode(0, 5)])
    assert write_unit(tmp_path, manifest, 0, [make_episode(0, 9)]).attempt == first.attempt
    assert open_dataset(tmp_path).num_steps == 5
    assert len(list((tmp_path / "shards").iterdir())) == 1


def test_no_episodes_at_all(tmp_path):
    manifest = create(tmp_path)
    with pytest.raises(DataError, match="unit 0: expected at least one episode, got none"):
        write_unit(tmp_path, manifest, 0, [])
    with pytest.raises(DataError, match=rf"{tmp_path}: the dataset has no episodes yet; .*--resume"):
        open_dataset(tmp_path)
