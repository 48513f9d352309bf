import json
from dataclasses import replace

import pytest

from diffplan.checkpoint import load_checkpoint
from diffplan.cluster.collect.coordinator import collect
from diffplan.cluster.train.driver import train_on_cluster
from diffplan.config import Config, with_overrides
from diffplan.data.format.dataset import open_dataset
from diffplan.errors import CheckpointError, DataError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.mark.slow
def test_a_resumed_run_reads_the_snapshot_it_began_with(tiny_config: Config, tmp_path) -> None:
    root, out = tmp_path / "data", tmp_path / "checkpoint"
    few = replace(tiny_config.collection, num_steps=3_000)
    collect(tiny_config.env, few, root)
    half = with_overrides(tiny_config, {"training.num_steps": 4})
    train_on_cluster(half, str(root), out, cpus_per_worker=1, verify_on_read=True)
    assert load_checkpoint(out).dataset["snapshot"] == 0
    grown = collect(tiny_config.env, tiny_config.collection, root, resume=True)
    assert grown.snapshot == 1
    train_on_cluster(
        with_overrides(tiny_config, {"training.num_steps": 8}), str(root), out, cpus_per_worker=1, resume=True
    )
    assert load_checkpoint(out).dataset["snapshot"] == 0
    assert load_checkpoint(out).step == 8

    other = tmp_path / "other"
    collect(tiny_config.env, few, other)
    with pytest.raises(DataError, match="was begun on dataset"):
        train_on_cluster(half, str(other), out, resume=True)
    (out / "pinned.json").write_text(json.dumps([]))
    with pytest.raises(CheckpointError, match=r"pinned\.json: expected the dataset of this run"):
        train_on_cluster(half, str(root), out, resume=True)


def test_damage_is_found_before_training_sees_it(tiny_config: Config, tmp_path) -> None:
    root = tmp_path / "data"
    dataset = collect(tiny_config.env, replace(tiny_config.collection, num_steps=3_000), root)
    shard = open_dataset(root).shards[0]
    path = root / shard.name
    content = bytearray(path.read_bytes())
    content[shard.offsets["observation"] + 400] ^= 0x10
    path.chmod(0o644)
    path.write_bytes(content)
    for storage in ("memory", "mapped", "blocks"):
        config = with_overrides(tiny_config, {"windows.storage": storage})
        with pytest.raises(DataError, match="expected checksum"):
            train_on_cluster(config, str(root), tmp_path / storage, cpus_per_worker=1, verify_on_read=True)
    assert dataset.num_steps == 3_000
