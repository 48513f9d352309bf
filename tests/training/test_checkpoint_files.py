import json
import pathlib
import zlib
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_training import CONFIG

from diffplan import checkpoint as checkpoints
from diffplan.checkpoint import (
    is_checkpoint,
    load_checkpoint,
    load_companion,
    load_training_state,
    publish_checkpoint,
    save_checkpoint,
    save_companion,
)
from diffplan.data.windows.normalization import Normalizer
from diffplan.errors import CheckpointError
from diffplan.layout import Layout
from diffplan.training.state import TrainingState

FILES = ["model.safetensors", "normalization.json", "dataset.json", "training_state.pt"]
COMPANION = "horizon_model.safetensors"
LAYOUT = Layout(4, 2)
NORMALIZER = Normalizer(np.arange(6, dtype=np.float32) / 3, np.arange(1, 7, dtype=np.float32) / 7)


def save(directory, step=3, **changes):
    state = TrainingState(CONFIG, LAYOUT)
    state.step = step
    values = {
        "config": CONFIG,
        "layout": LAYOUT,
        "step": step,
        "normalizer": NORMALIZER,
        "weights": state.average_weights(),
        "dataset": {"path": "somewhere", "snapshot": 2},
        "training_state": state.state_dict(),
    }
    save_checkpoint(directory, **{**values, **changes})
    return state


def assert_refused(directory, named, load=load_checkpoint):
    with pytest.raises(CheckpointError) as caught:
        load(directory)
    assert str(named) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not is_checkpoint(directory)


def record_again(directory, name):
    """Make the record match a changed file, as a forger would."""
    path = directory / "config.json"
    record, content = json.loads(path.read_text()), (directory / name).read_bytes()
    record["files"][name] = {"num_bytes": len(content), "crc32": zlib.crc32(content)}
    path.write_text(json.dumps(record))


def test_everything_comes_back(tmp_path):
    state = save(tmp_path / "new" / "checkpoint")
    assert is_checkpoint(tmp_path / "new" / "checkpoint")
    loaded = load_checkpoint(tmp_path / "new" / "checkpoint")
    assert (loaded.config, loaded.layout, loaded.step) == (CONFIG, LAYOUT, 3)
    assert loaded.dataset == {"path": "somewhere", "snapshot": 2}
    np.testing.assert_array_equal(loaded.normalizer.center, NORMALIZER.center)
    np.testing.assert_array_equal(loaded.normalizer.scale, NORMALIZER.scale)
    weights = state.average_weights()
    assert loaded.weights.keys() == weights.keys()
    assert all(torch.equal(loaded.weights[name], weights[name]) for name in weights)
    assert load_training_state(tmp_path / "new" / "checkpoint")["step"] == 3


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncated", "longer", "flipped", "missing", "empty"])
def test_damaged_file_is_named(tmp_path, name, damage):
    save(tmp_path)
    path = tmp_path / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "missing":
        path.unlink()
    else:
        whole = path.read_bytes()
        changed = {"truncated": whole[:-1], "longer": whole + b"\0", "flipped": bytes(content), "empty": b""}
        path.write_bytes(changed[damage])
    assert_refused(tmp_path, path, load_training_state if name == "training_state.pt" else load_checkpoint)


def test_planning_does_not_read_the_training_state(tmp_path):
    save(tmp_path)
    (tmp_path / "training_state.pt").unlink()
    assert load_checkpoint(tmp_path).step == 3


@pytest.mark.parametrize("load", [load_checkpoint, load_training_state])
def test_directory_without_a_record_is_no_checkpoint(tmp_path, load):
    save(tmp_path)
    (tmp_path / "config.json").unlink()
    assert_refused(tmp_path, tmp_path, load)
    assert_refused(tmp_path / "missing", tmp_path / "missing", load)


@pytest.mark.parametrize("load", [load_checkpoint, load_training_state])
@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"step": 3}', "\xff"])
def test_record_that_is_none_is_named(tmp_path, text, load):
    save(tmp_path)
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    assert_refused(tmp_path, tmp_path / "config.json", load)


@pytest.mark.parametrize("version", [0, 1, "2"])
def test_other_version_is_refused(tmp_path, version):
    save(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": version}))
    assert_refused(tmp_path, f"{path}: expected checkpoint version 2, got {version}")


@pytest.mark.parametrize(
    "change",
    [
        {"config": {"env": {"env_id": "x"}, "training": {"num_steps": 0}}},
        {"config": {"env": {"env_id": "x"}, "traning": {}}},
        {"config": 3},
        {"observation_dim": None, "action_dim": None, "files": []},
        {"files": {}},
    ],
)
def test_record_with_wrong_content_is_a_checkpoint_error(tmp_path, change):
    save(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "normalization.json", "dataset.json", "training_state.pt"])
def test_file_of_another_kind_is_a_checkpoint_error_even_if_its_checksum_is_right(tmp_path, name):
    save(tmp_path)
    (tmp_path / name).write_bytes(b"something else")
    record_again(tmp_path, name)
    with pytest.raises(CheckpointError) as caught:
        (load_training_state if name == "training_state.pt" else load_checkpoint)(tmp_path)
    assert "\n" not in str(caught.value)


class Exploit:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def test_loading_runs_no_code_from_the_file(tmp_path):
    target = tmp_path / "executed"
    save(tmp_path / "checkpoint", training_state={"step": Exploit(target)})
    with pytest.raises(CheckpointError, match=r"training_state\.pt: expected a training state"):
        load_training_state(tmp_path / "checkpoint")
    assert not target.exists()


@pytest.mark.parametrize("broken", ["save_file", "torch.save", "rename"])
def test_interrupted_save_leaves_no_checkpoint_not_even_over_an_old_one(tmp_path, monkeypatch, broken):
    save(tmp_path, step=1)

    def fail(*args, **kwargs):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        if broken == "rename":
            patch.setattr(pathlib.Path, "rename", fail)
        else:
            patch.setattr(f"{checkpoints.__name__}.{broken}", fail)
        with pytest.raises(OSError, match="disk full"):
            save(tmp_path, step=2)
    assert_refused(tmp_path, tmp_path)
    save(tmp_path, step=2)
    assert load_checkpoint(tmp_path).step == 2


def test_record_is_written_last(tmp_path, monkeypatch):
    renamed = []
    rename = pathlib.Path.rename

    def spy(self, target):
        renamed.append((pathlib.Path(target).name, sorted(p.name for p in tmp_path.iterdir() if p != self)))
        return rename(self, target)

    monkeypatch.setattr(pathlib.Path, "rename", spy)
    save(tmp_path)
    assert renamed == [("config.json", sorted(FILES))]


def test_published_checkpoint_replaces_the_one_before(tmp_path):
    save(tmp_path / "target", step=1)
    state = save(tmp_path / "source", step=2)
    publish_checkpoint(tmp_path / "source", tmp_path / "target")
    loaded = load_checkpoint(tmp_path / "target")
    assert loaded.step == 2
    assert all(torch.equal(loaded.weights[name], value) for name, value in state.average_weights().items())
    assert load_training_state(tmp_path / "target")["step"] == 2
    assert sorted(p.name for p in (tmp_path / "target").iterdir()) == sorted([*FILES, "config.json"])


def test_publishing_nothing_leaves_the_published_checkpoint_alone(tmp_path):
    save(tmp_path / "target", step=1)
    with pytest.raises(CheckpointError, match="expected a checkpoint"):
        publish_checkpoint(tmp_path / "missing", tmp_path / "target")
    assert load_checkpoint(tmp_path / "target").step == 1


def test_a_damaged_checkpoint_is_not_published(tmp_path):
    save(tmp_path / "target", step=1)
    save(tmp_path / "source", step=2)
    (tmp_path / "source" / "training_state.pt").unlink()
    with pytest.raises(CheckpointError, match=r"training_state\.pt: the file is missing"):
        publish_checkpoint(tmp_path / "source", tmp_path / "target")
    assert load_checkpoint(tmp_path / "target").step == 1


def test_interrupted_publication_is_no_checkpoint(tmp_path, monkeypatch):
    save(tmp_path / "target", step=1)
    save(tmp_path / "source", step=2)
    copyfile, copied = checkpoints.shutil.copyfile, []

    def copy_twice_then_fail(source, target):
        if len(copied) == 2:
            raise OSError("no space left on device")
        copied.append(source)
        return copyfile(source, target)

    monkeypatch.setattr(checkpoints.shutil, "copyfile", copy_twice_then_fail)
    with pytest.raises(OSError, match="no space"):
        publish_checkpoint(tmp_path / "source", tmp_path / "target")
    assert not is_checkpoint(tmp_path / "target")


def add_companion(directory, name="horizon_model", seed=0, **settings):
    generator = torch.Generator().manual_seed(seed)
    tensors = {"layers.0.weight": torch.randn(3, 5, generator=generator).T, "center": torch.arange(3.0)}
    save_companion(directory, name, tensors, settings)
    return tensors


def assert_same_tensors(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_companions_come_back(tmp_path):
    state = save(tmp_path)
    assert load_companion(tmp_path, "horizon_model") is None
    first = add_companion(tmp_path, horizons=[4, 8], name_of_it="é")
    second = add_companion(tmp_path, "inverse_dynamics", seed=1)
    tensors, settings = load_companion(tmp_path, "horizon_model")
    assert_same_tensors(tensors, first)
    assert settings == {"horizons": [4, 8], "name_of_it": "é"}
    tensors, settings = load_companion(str(tmp_path), "inverse_dynamics")
    assert_same_tensors(tensors, second)
    assert settings == {}
    # The checkpoint itself is what it was.
    assert is_checkpoint(tmp_path)
    loaded = load_checkpoint(tmp_path)
    assert (loaded.config, loaded.step) == (CONFIG, 3)
    assert_same_tensors(loaded.weights, state.average_weights())
    assert load_training_state(tmp_path)["step"] == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [*FILES, "config.json", COMPANION, "inverse_dynamics.safetensors"]
    )


def test_a_companion_replaces_the_one_of_its_name(tmp_path):
    save(tmp_path)
    add_companion(tmp_path, seed=0, horizons=[4])
    other = add_companion(tmp_path, seed=1, horizons=[8])
    tensors, settings = load_companion(tmp_path, "horizon_model")
    assert_same_tensors(tensors, other)
    assert settings == {"horizons": [8]}
    assert is_checkpoint(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "longer", "flipped", "missing", "empty"])
def test_damaged_companion_is_named(tmp_path, damage):
    save(tmp_path)
    add_companion(tmp_path)
    path = tmp_path / COMPANION
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    if damage == "missing":
        path.unlink()
    else:
        changed = {"truncated": whole[:-1], "longer": whole + b"\0", "flipped": bytes(flipped), "empty": b""}
        path.write_bytes(changed[damage])
    assert_refused(tmp_path, path, lambda directory: load_companion(directory, "horizon_model"))
    assert load_checkpoint(tmp_path).step == 3
    add_companion(tmp_path)  # a new one cures it
    assert is_checkpoint(tmp_path)


@pytest.mark.parametrize("content", ["text", "no settings", "settings that are no JSON"])
def test_file_that_is_no_companion_is_a_checkpoint_error_even_if_its_checksum_is_right(tmp_path, content):
    save(tmp_path)
    add_companion(tmp_path)
    path = tmp_path / COMPANION
    if content == "text":
        path.write_bytes(b"something else")
    else:
        save_file({"a": torch.zeros(2)}, path, metadata=None if content == "no settings" else {"settings": "{"})
    record_again(tmp_path, COMPANION)
    with pytest.raises(CheckpointError, match="expected a companion model") as caught:
        load_companion(tmp_path, "horizon_model")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("use", [add_companion, lambda directory: load_companion(directory, "horizon_model")])
def test_without_a_checkpoint_there_are_no_companions(tmp_path, use):
    with pytest.raises(CheckpointError, match="expected a checkpoint"):
        use(tmp_path / "missing")
    with pytest.raises(CheckpointError, match="expected a checkpoint"):
        use(tmp_path)
    assert not list(tmp_path.iterdir())


def test_published_checkpoints_have_their_companions(tmp_path):
    save(tmp_path / "source")
    tensors = add_companion(tmp_path / "source", horizons=[4])
    publish_checkpoint(tmp_path / "source", tmp_path / "target")
    assert is_checkpoint(tmp_path / "target")
    assert_same_tensors(load_companion(tmp_path / "target", "horizon_model")[0], tensors)
    (tmp_path / "source" / COMPANION).unlink()
    with pytest.raises(CheckpointError, match=rf"{COMPANION}: the file is missing"):
        publish_checkpoint(tmp_path / "source", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_companions_of_other_weights_are_forgotten(tmp_path):
    save(tmp_path, step=1)
    add_companion(tmp_path)
    save(tmp_path, step=2)
    assert load_companion(tmp_path, "horizon_model") is None
    assert is_checkpoint(tmp_path)
    # Neither does a checkpoint without any inherit those of the one that it replaces.
    save(tmp_path / "target", step=1)
    add_companion(tmp_path / "target")
    publish_checkpoint(tmp_path, tmp_path / "target")
    assert load_companion(tmp_path / "target", "horizon_model") is None
    assert load_checkpoint(tmp_path / "target").step == 2


def test_interrupted_companion_leaves_the_checkpoint_usable(tmp_path, monkeypatch):
    save(tmp_path)

    def fail(*args, **kwargs):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        with pytest.raises(OSError, match="disk full"):
            add_companion(tmp_path)
    assert is_checkpoint(tmp_path)
    assert load_companion(tmp_path, "horizon_model") is None


@pytest.mark.parametrize("old", [False, True], ids=["first", "again"])
@pytest.mark.parametrize("place", range(3))
def test_a_companion_cut_short_is_none_rather_than_a_wrong_one(tmp_path, monkeypatch, old, place):
    """Killed before one of the renames: that of the record without it, of the file, and of the record with it."""
    save(tmp_path)
    other = add_companion(tmp_path, "inverse_dynamics", seed=5)
    before = add_companion(tmp_path, seed=0, horizons=[4]) if old else None
    rename, renamed = pathlib.Path.replace, []

    def rename_until_killed(source, target):
        renamed.append(pathlib.Path(target).name)
        if len(renamed) > place:
            raise KeyboardInterrupt
        return rename(source, target)

    monkeypatch.setattr(pathlib.Path, "replace", rename_until_killed)
    finished = not old and place == 2  # where there was no such companion, no record without it is written
    with nullcontext() if finished else pytest.raises(KeyboardInterrupt):
        add_companion(tmp_path, seed=1, horizons=[8])
    monkeypatch.undo()
    found = load_companion(tmp_path, "horizon_model")
    if finished:
        assert found[1] == {"horizons": [8]}
    elif old and place == 0:
        assert_same_tensors(found[0], before)  # nothing had been touched
    else:
        assert found is None
    assert is_checkpoint(tmp_path)
    assert load_checkpoint(tmp_path).step == 3
    assert_same_tensors(load_companion(tmp_path, "inverse_dynamics")[0], other)
    new = add_companion(tmp_path, seed=2, horizons=[12])  # the next one is as good as ever
    assert_same_tensors(load_companion(tmp_path, "horizon_model")[0], new)
    assert is_checkpoint(tmp_path)
