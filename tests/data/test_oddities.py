"""What is odd about data is said in one line each; sound data are silent."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_up_episodes import make_episode, make_manifest

from diffplan.config import Config, WindowConfig, with_overrides
from diffplan.data.format.dataset import TrajectoryDataset, open_dataset
from diffplan.data.format.writer import create_dataset, write_unit
from diffplan.data.maintenance.merging import Source, merge
from diffplan.data.maintenance.oddities import find_oddities
from diffplan.errors import DataError
from diffplan.tasks.registry import get_preset
from diffplan.training.batches import index_windows
from diffplan.types import Episode


def write(root: Path, episodes: list[Episode], **changes: object) -> TrajectoryDataset:
    manifest = create_dataset(root, replace(make_manifest(), **changes))
    for unit, first in enumerate(range(0, len(episodes), 4)):
        write_unit(root, manifest, unit, episodes[first : first + 4])
    return open_dataset(root)


def make_sound(num: int = 20, length: int = 200) -> list[Episode]:
    episodes = [make_episode(i, length) for i in range(num)]
    for episode in episodes:
        np.clip(episode.actions, -1, 1, out=episode.actions)
    return episodes


def find(root: Path, episodes: list[Episode], windows: WindowConfig | None = None, **changes: object) -> list[str]:
    lines = list(find_oddities(write(root, episodes, **changes), windows))
    assert not any("\n" in line for line in lines)
    return lines


def test_sound_data_are_silent(tmp_path: Path) -> None:
    assert find(tmp_path / "data", make_sound(), WindowConfig()) == []


def test_one_outlier_is_named_with_what_it_costs(tmp_path: Path) -> None:
    episodes = make_sound()
    episodes[7].observations[50, 1] = -999
    (line,) = find(tmp_path / "data", episodes)
    assert line.startswith("observation[1]: outliers: 99 % of the values lie between -2.")
    assert "all between -999 and" in line
    assert "leaves 0.5" in line


def test_values_that_are_rare_and_not_far_are_no_outliers(tmp_path: Path) -> None:
    episodes = make_sound()
    for episode in episodes:
        episode.observations[:, 2] = 0.0  # a contact, closed once
    episodes[3].observations[10, 2] = 1.0
    assert not [line for line in find(tmp_path / "data", episodes) if "outliers" in line]


def test_a_stuck_sensor_is_named(tmp_path: Path) -> None:
    episodes = make_sound()
    for episode in episodes[:5]:
        episode.observations[100:] = episode.observations[100]
    (line,) = find(tmp_path / "data", episodes)
    assert line.startswith("observation: 12% of the rows equal the row before, up to 100 in a row")


def test_constant_columns_and_numbers_far_from_zero_are_named(tmp_path: Path) -> None:
    episodes = make_sound()
    for episode in episodes:
        episode.observations[:, 0] = 3.0
        episode.observations[:, 1] += 1e6
    constant, far = find(tmp_path / "data", episodes)
    assert constant == "observation: [0] never changes (3)"
    assert far.startswith("observation: [1] changes little, far from 0: from")
    assert "where float32 has steps of 0.0625; subtract a constant from it" in far


def test_actions_in_other_units_than_their_bounds_are_named(tmp_path: Path) -> None:
    episodes = make_sound()
    for episode in episodes:
        episode.actions[:, 0] *= 0.01
    (line,) = find(tmp_path / "data", episodes)
    assert line.startswith("action: [0] goes from -0.0100 to 0.0100, 1.0% of the range between its bounds -1 to 1")


def test_steps_without_a_window_are_counted(tmp_path: Path) -> None:
    episodes = [make_episode(0, 400), *(make_episode(i, 60) for i in range(1, 100))]
    for episode in episodes:
        np.clip(episode.actions, -1, 1, out=episode.actions)
    windows = WindowConfig(min_horizon=64, max_horizon=64, stride=5)
    (line,) = find(tmp_path / "data", episodes, windows)
    assert line.startswith("windows: 99 of 100 episodes, with 94% of the steps, are shorter than a window of")
    assert "(316 steps)" in line
    padded = replace(windows, padding="end")
    assert not list(find_oddities(open_dataset(tmp_path / "data"), padded))


@pytest.fixture
def copied(tmp_path: Path) -> TrajectoryDataset:
    """Every episode is there three times."""
    episodes = make_sound(8)
    again = [replace(episode, episode_index=8 + i) for i, episode in enumerate([*episodes, *episodes])]
    return write(tmp_path / "copied", [*episodes, *again])


def test_copies_are_named(copied: TrajectoryDataset) -> None:
    (line,) = find_oddities(copied)
    assert line.startswith("episodes: 16 of 24 are copies of others (same length, return and last")


def hold_out(config: Config, dataset: TrajectoryDataset) -> np.ndarray:
    """Which episodes are held out."""
    trained = index_windows(dataset, config, held_out=False).among
    held_out = index_windows(dataset, config, held_out=True).among
    assert trained is not None
    assert held_out is not None
    assert (trained != held_out).all()
    return held_out


@pytest.mark.parametrize("seed", range(5))
def test_copies_of_an_episode_are_held_out_together(copied: TrajectoryDataset, seed: int) -> None:
    changes = {"training.validation_fraction": 0.3, "training.seed": seed}
    held_out = hold_out(with_overrides(get_preset("maze2d-umaze"), changes), copied)
    assert 0 < held_out.sum() < 24
    np.testing.assert_array_equal(held_out[:8], held_out[8:16])
    np.testing.assert_array_equal(held_out[:8], held_out[16:])


def test_copies_of_a_single_episode_cannot_be_held_out(tmp_path: Path) -> None:
    episode = make_sound(1)[0]
    dataset = write(tmp_path / "data", [replace(episode, episode_index=i) for i in range(6)])
    config = with_overrides(get_preset("maze2d-umaze"), {"training.validation_fraction": 0.3})
    with pytest.raises(DataError, match="expected two different episodes to hold one out, got copies of one"):
        index_windows(dataset, config, held_out=True)


def test_a_dataset_is_not_merged_with_itself(tmp_path: Path) -> None:
    dataset = write(tmp_path / "data", make_sound(4))
    with pytest.raises(DataError, match="expected different datasets, got the same one as a and b") as caught:
        merge([Source(dataset, "a"), Source(dataset, "b")], tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_unknown_step_lengths_are_named_in_a_merge(tmp_path: Path) -> None:
    one = write(tmp_path / "one", make_sound(4))
    other = write(tmp_path / "other", make_sound(4), env={"env_id": "diffplan/Maze2D-UMaze-v1", "step_seconds": 0.01})
    with pytest.raises(DataError, match=r"expected steps of unknown length as in .*, got 0\.01 s"):
        merge([Source(one, "a"), Source(other, "b")], tmp_path / "out")
