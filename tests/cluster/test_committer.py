"""Collection into object stores, with and without conditional puts, by real actors against a real server."""

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
from diffplan.cluster.collect import collect
from diffplan.cluster.committer import (
    CommittedStore,
    adopt_variables,
    find_variables,
    needs_committer,
    serialize_commits,
)
from diffplan.cluster.train import train_on_cluster
from diffplan.config import Config, with_overrides
from diffplan.data.dataset import list_orphans, list_snapshots, open_dataset
from diffplan.data.object_store import ObjectStore
from diffplan.data.store import LocalStore, open_store
from diffplan.errors import DataError, StoreError
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


def test_collection_into_a_server_that_ignores_conditions(config: Config, s3: S3Server, url: str, content: str) -> None:
    s3.ignores_conditions = True
    dataset = collect(config.env, config.collection, url, num_workers=2)
    assert dataset.content_hash() == content
    assert type(dataset.store) is ObjectStore
    assert list_snapshots(dataset.store) == [dataset.snapshot] == [0]
    assert list_orphans(dataset) == []
    with pytest.raises(DataError, match=r"--resume"):
        collect(config.env, config.collection, url)


def test_two_coordinators_share_one_committer(config: Config, tmp_path: Path, content: str) -> None:
    """On a file system that only looks first; both begin the dataset at the same moment."""
    url = f"local://{tmp_path}/data"
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
    dataset = open_dataset(tmp_path / "data")
    assert dataset.content_hash() == content
    assert list_orphans(dataset) == []  # who came second dropped its shard
    assert not [name for _, _, names in os.walk(tmp_path) for name in names if name.startswith(".tmp-")]


@ray.remote(num_cpus=0)
class Writer:
    """Puts many names, as others do at the same time."""

    def run(self, store: CommittedStore, writer: int, num_names: int, variables: dict[str, str]) -> list[int]:
        adopt_variables(variables)
        return [i for i in range(num_names) if store.put_if_absent(f"commits/{i}", bytes([writer]) * 1000)]


def test_exactly_one_of_many_actors_puts_each_object_though_the_committer_is_killed(s3: S3Server, url: str) -> None:
    s3.ignores_conditions = True
    store = serialize_commits(open_store(url))
    assert isinstance(store, CommittedStore)
    assert store.put_if_absent("first", b"x")
    s3.put_seconds = 0.03  # time enough for others to look before the object is there
    num_names = 60
    writers = [Writer.remote() for _ in range(3)]
    running = [writer.run.remote(store, i, num_names, find_variables()) for i, writer in enumerate(writers)]
    while len(store.list("commits")) < 20:
        time.sleep(0.01)
    ray.kill(store._committer)  # the names that were being put just then may have no winner who knows
    won = ray.get(running)
    assert store.put_if_absent("commits/0", b"late") is False
    names = sorted(i for wins in won for i in wins)
    assert len(names) == len(set(names))
    assert num_names - 3 <= len(names) <= num_names
    for writer, wins in enumerate(won):
        for i in wins:
            assert store.read(f"commits/{i}") == bytes([writer]) * 1000
    assert len(store.list("commits")) == num_names
    for writer in writers:
        ray.kill(writer)


def test_a_store_with_conditional_puts_needs_no_committer(url: str, tmp_path: Path) -> None:
    for store in (LocalStore(tmp_path), ObjectStore(url)):
        assert needs_committer(store) is False
        assert serialize_commits(store) is store
    assert needs_committer(ObjectStore(f"local://{tmp_path}")) is True


def test_what_the_committer_meets_is_said(s3: S3Server) -> None:
    store = CommittedStore("s3://there-is-none-of-this-either/data")
    with pytest.raises(StoreError, match="expected a bucket") as caught:
        store.put_if_absent("x", b"x")
    assert "\n" not in str(caught.value)


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
