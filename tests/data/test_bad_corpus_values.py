"""Every way in which values and episodes can be wrong or odd: refused when written, or kept and harmless."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_up_episodes import make_episode, make_manifest, require_undamaged

from diffplan.data.dataset import open_dataset
from diffplan.data.format import Manifest
from diffplan.data.normalization import Normalizer
from diffplan.data.window_index import WindowIndex
from diffplan.data.writer import create_dataset, write_unit
from diffplan.errors import DataError
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
    with pytest.raises(DataError, match=rf"{tmp_path}: episode 1 occurs more than once; delete the commit"):
        open_dataset(tmp_path)


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
