"""Numbers of strangers' configs: bounded, so that nothing runs or allocates until it is killed."""

import json
import os
import time
from pathlib import Path

import pytest

from diffplan.behaviors.offline_policy import load_offline_policy
from diffplan.behaviors.policy_file import PolicyFileBehavior
from diffplan.checkpoint import load_checkpoint
from diffplan.config import Config, EnvConfig, config_from_json, config_to_json, with_overrides
from diffplan.config.offline_rl import CQLSettings
from diffplan.data.exchange.d4rl import import_d4rl
from diffplan.data.format.dataset import open_dataset
from diffplan.errors import CheckpointError, ConfigError, DataError, DiffplanError
from diffplan.planning.settings import load_settings
from diffplan.report.contents import read_run
from diffplan.storage.opening import open_store
from diffplan.tasks.registry import find_task, get_preset, list_presets
from diffplan.tuning.studies import find_study

CONFIG = Config(env=EnvConfig(env_id="x"))
HUGE = 10**9
TOO_MUCH = {
    "network.dim": 8 * HUGE,
    "network.dim_mults": (1, HUGE),
    "network.depth": HUGE,
    "network.hidden_dim": HUGE,
    "network.num_tasks": HUGE,
    "diffusion.num_diffusion_steps": HUGE,
    "windows.min_horizon": HUGE,
    "windows.max_horizon": HUGE,
    "windows.horizon_multiple": HUGE,
    "windows.stride": HUGE,
    "collection.num_steps": 10**15,
    "collection.episodes_per_unit": HUGE,
    "collection.episode_steps": 10**12,
    "collection.seed": 2**64,
    "training.num_steps": 10**15,
    "training.batch_size": HUGE,
    "training.accumulation_steps": HUGE,
    "training.validation_windows": HUGE,
    "training.learning_rate": float("inf"),
    "training.seed": -1,
    "search.num_trials": HUGE,
    "search.episodes_per_block": HUGE,
    "search.num_blocks": HUGE,
    "search.max_concurrent_trials": HUGE,
    "planning.sampling.num_steps": HUGE,
    "planning.sampling.num_repeats": HUGE,
    "planning.sampling.temperature": float("inf"),
    "planning.horizon.max": HUGE,
    "planning.horizon.multiple": HUGE,
    "planning.selection.num_candidates": HUGE,
    "planning.guidance.num_steps": HUGE,
    "planning.guidance.stop_step": HUGE,
    "planning.guidance.scale": float("inf"),
    "planning.guidance.guides": ("goal_distance()",) * 100_000,
    "planning.replanning.interval": 10**15,
    "env.position_columns": (HUGE,),
}


@pytest.mark.parametrize(("field", "value"), TOO_MUCH.items(), ids=TOO_MUCH)
def test_a_number_far_above_all_use_is_one_line(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{field}.*: expected") as caught:
        with_overrides(CONFIG, {field: value})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "values",
    [
        {"planning.sampling.num_steps": 10_000, "planning.sampling.num_repeats": 1_000},
        {"planning.guidance.num_steps": 1_000, "planning.sampling.num_steps": 10_000},
        {"planning.horizon.max": 100_000, "planning.selection.num_candidates": 100_000},
    ],
)
def test_products_are_bounded_too(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="a product of at most"):
        with_overrides(CONFIG, values)


def test_presets_and_large_settings_are_taken() -> None:
    for preset in list_presets():
        config = get_preset(preset)
        assert config_from_json(Config, config_to_json(config)) == config
    large = {
        "network.dim": 1024,
        "network.dim_mults": (1, 2, 4, 8),
        "windows.max_horizon": 4096,
        "planning.horizon.max": 4096,
        "planning.selection.num_candidates": 4096,
        "planning.sampling.num_steps": 1000,
        "training.num_steps": 10**8,
        "training.batch_size": 65_536,
        "collection.num_steps": 10**10,
    }
    with_overrides(CONFIG, large)


@pytest.mark.parametrize(
    "values",
    [
        {"num_trials": HUGE},
        {"vary": {"planning.guidance.scale": {"among": list(range(100_000))}}},
        {"vary": {"planning.guidance.scale": {"low": 0.0, "high": float("inf")}}},
        {"vary": {f"planning.f{i}": {"among": [1]} for i in range(5000)}},
        {"vary": {"planning.guidance.scale": {"shares": [1.0] * 5000}}},
    ],
)
def test_studies_are_bounded(tmp_path: Path, values: dict[str, object]) -> None:
    path = tmp_path / "study.json"
    path.write_text(json.dumps({"vary": {"planning.guidance.scale": {"among": [1.0]}}, **values}))
    with pytest.raises(ConfigError, match=r"study\.json: .*expected"):
        find_study(path, find_task("maze2d"))


def test_algorithms_of_baselines_are_bounded() -> None:
    for field in ("hidden_dim", "batch_size", "num_sampled_actions"):
        with pytest.raises(ConfigError, match=f"{field}: expected at most"):
            CQLSettings(**{field: HUGE})


NOT_FILES = ("pipe", "zero", "directory")


def make_not_file(place: Path, kind: str) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "zero":
        place.symlink_to("/dev/zero")
    else:
        place.mkdir()


def use_settings(root: Path) -> object:
    return load_settings(root / "file.json")


def use_study(root: Path) -> object:
    return find_study(root / "file.json", find_task("maze2d"))


OPENED = {
    "settings": ("file.json", use_settings),
    "study": ("file.json", use_study),
    "policy": ("file.npz", lambda root: PolicyFileBehavior.load(str(root / "file.npz"), None)),  # type: ignore[arg-type]
    "checkpoint": ("config.json", load_checkpoint),
    "manifest": ("_dataset.json", open_dataset),
    "offline policy": ("policy.json", load_offline_policy),
    "summary": ("evaluation/maze2d/summary.json", read_run),
    "best": ("search/best.json", read_run),
    "events": ("tensorboard/events.out.tfevents.1", read_run),
    "hdf5": ("file.hdf5", lambda root: import_d4rl(root / "file.hdf5", root / "out", env=CONFIG.env)),
    "store": ("file", lambda root: open_store(root).read("file")),
}


@pytest.mark.parametrize("kind", NOT_FILES)
@pytest.mark.parametrize("what", OPENED)
def test_only_regular_files_are_opened(tmp_path: Path, what: str, kind: str) -> None:
    name, use = OPENED[what]
    make_not_file(tmp_path / name, kind)
    since = time.monotonic()
    errors: tuple[type[Exception], ...] = (ConfigError, CheckpointError, DataError, DiffplanError)
    with pytest.raises(errors if what != "store" or kind != "directory" else IsADirectoryError) as caught:
        use(tmp_path)
    assert time.monotonic() - since < 5
    assert "\n" not in str(caught.value)


def test_a_settings_file_is_not_endless(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ConfigError, match=r"expected at most 16777216 bytes, got 1099511627776"):
        load_settings(path)
