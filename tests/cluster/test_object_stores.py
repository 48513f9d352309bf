"""Collection into object stores, and training from them, by real actors against a real server."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch
from s3_server import S3Server, run_s3_server

from diffplan import cli
from diffplan.checkpoint import load_checkpoint
from diffplan.cluster.collect.coordinator import collect
from diffplan.cluster.store_variables import adopt_variables, find_variables
from diffplan.cluster.train.driver import train_on_cluster
from diffplan.config import Config, with_overrides
from diffplan.data.format.dataset import list_orphans, list_snapshots, open_dataset
from diffplan.storage.object_store import ObjectStore
from diffplan.storage.opening import open_store
from diffplan.tasks.registry import get_preset

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

SETTINGS = {"num_steps": 6_000, "episode_steps": 300, "episodes_per_unit": 2}


@pytest.fixture(scope="module")
def running_server() -> Iterator[S3Server]:
    with run_s3_server() as server:
        yield server


@pytest.fixture
def s3(running_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> S3Server:
    running_server.reset()
    for name, value in running_server.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DIFFPLAN_CACHE", str(tmp_path / "cache"))
    return running_server


@pytest.fixture
def url(s3: S3Server) -> str:
    bucket = f"b-{time.time_ns()}"
    s3.client().create_bucket(Bucket=bucket)
    return f"s3://{bucket}/data"


@pytest.fixture(scope="module")
def config() -> Config:
    overrides = {f"collection.{name}": value for name, value in SETTINGS.items()}
    return with_overrides(get_preset("maze2d-umaze-smoke"), overrides)


@pytest.fixture(scope="module")
def content(config: Config, tmp_path_factory: pytest.TempPathFactory) -> str:
    return collect(config.env, config.collection, tmp_path_factory.mktemp("local") / "data").content_hash()


def test_the_command_collects_into_s3(url: str, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [text for name, value in SETTINGS.items() for text in (f"--{name}", str(value))]
    arguments = ["collect", "maze2d-umaze-smoke", "--out", url, *settings]
    assert cli.main(arguments) == 0
    assert f"{url}: 6,000 steps in 20 episodes" in capsys.readouterr().out
    assert open_dataset(url).content_hash() == content
    assert list_snapshots(open_store(url)) == [0]
    assert cli.main(arguments) == 2
    assert "there is a dataset already; go on with it by --resume" in capsys.readouterr().err
    assert cli.main([*arguments, "--resume"]) == 0


def test_the_command_says_that_a_bucket_is_missing(s3: S3Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["collect", "maze2d-umaze-smoke", "--out", "s3://there-is-none-of-this/data"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: s3://there-is-none-of-this/data")
    assert "expected a bucket" in line


def test_stores_without_conditional_puts_are_refused_in_one_line(
    s3: S3Server, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    s3.ignores_conditions = True
    for out in (url, f"local://{tmp_path}/data"):
        assert cli.main(["collect", "maze2d-umaze-smoke", "--out", out]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {out}: expected a store that puts objects only if absent (S3, ")
        assert open_store(out).list("") == []


@pytest.mark.slow
def test_two_coordinators_collect_into_one_bucket(config: Config, url: str, content: str) -> None:
    """Both begin the dataset at the same moment."""
    found: list[str] = []

    def coordinate(spelling: str) -> None:
        try:
            found.append(collect(config.env, config.collection, spelling, num_workers=1, resume=True).content_hash())
        except Exception as error:
            found.append(repr(error))

    threads = [threading.Thread(target=coordinate, args=(spelling,)) for spelling in (url, url + "/")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [content, content]
    dataset = open_dataset(url)
    assert dataset.content_hash() == content
    assert list_orphans(dataset) == []  # who came second dropped its shard
    names = [stored.name for part in ("", "shards", "commits") for stored in dataset.store.list(part)]
    assert not [name for name in names if ".tmp-" in name]


@ray.remote(num_cpus=0)
class Writer:
    """Puts many names, as others do at the same time."""

    def run(self, store: ObjectStore, writer: int, num_names: int, variables: dict[str, str]) -> list[int]:
        adopt_variables(variables)
        return [i for i in range(num_names) if store.put_if_absent(f"commits/{i}", bytes([writer]) * 1000)]


@pytest.mark.slow
def test_exactly_one_of_many_actors_puts_each_object(s3: S3Server, url: str) -> None:
    store = ObjectStore(url)
    s3.put_seconds = 0.03  # time enough for others to look before the object is there
    num_names = 60
    writers = [Writer.remote() for _ in range(3)]
    won = ray.get([writer.run.remote(store, i, num_names, find_variables()) for i, writer in enumerate(writers)])
    assert store.put_if_absent("commits/0", b"late") is False
    assert sorted(i for wins in won for i in wins) == list(range(num_names))
    for writer, wins in enumerate(won):
        for i in wins:
            assert store.read(f"commits/{i}") == bytes([writer]) * 1000
    assert len(store.list("commits")) == num_names
    for writer in writers:
        ray.kill(writer)


def test_variables_of_stores_are_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec.config

    monkeypatch.setattr(fsspec.config, "conf", {})
    monkeypatch.setenv("AWS_PROFILE", "lab")
    monkeypatch.setenv("UNRELATED", "x")
    assert find_variables()["AWS_PROFILE"] == "lab"
    assert "UNRELATED" not in find_variables()
    monkeypatch.setenv("AWS_PROFILE", "other")
    monkeypatch.setenv("FSSPEC_S3_ENDPOINT_URL", "http://there")  # so that it is taken back
    adopt_variables({"AWS_PROFILE": "lab", "FSSPEC_S3_ENDPOINT_URL": "http://here"})
    assert os.environ["AWS_PROFILE"] == "lab"
    assert fsspec.config.conf["s3"]["endpoint_url"] == "http://here"


@pytest.mark.slow
def test_training_reads_from_s3(url: str, tiny_config: Config, tmp_path: Path) -> None:
    """The workers were started before the variables of the store were set, as those of a cluster are."""
    collect(tiny_config.env, tiny_config.collection, url)
    out = train_on_cluster(tiny_config, url, tmp_path / "checkpoint", cpus_per_worker=1)
    checkpoint = load_checkpoint(out)
    assert (checkpoint.step, checkpoint.dataset["path"]) == (tiny_config.training.num_steps, url)
    local = tmp_path / "data"
    collect(tiny_config.env, tiny_config.collection, local)
    same = load_checkpoint(train_on_cluster(tiny_config, local, tmp_path / "local", cpus_per_worker=1))
    for name, weight in same.weights.items():
        assert torch.equal(checkpoint.weights[name], weight), name
