import multiprocessing
import pickle
import socket
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
from made_up_episodes import make_episode, make_manifest, write_dataset
from s3_server import S3Server, run_s3_server

from diffplan.data.format.commit import commit_unit, list_committed_units
from diffplan.data.format.dataset import list_orphans, open_dataset, read_manifest, write_snapshot
from diffplan.data.format.manifest import commit_name
from diffplan.data.format.writer import create_dataset, write_unit
from diffplan.data.maintenance.verification import find_damage
from diffplan.data.windows.mapped_windows import Windows
from diffplan.errors import DataError, StoreError
from diffplan.storage.object_store import ObjectStore
from diffplan.storage.opening import open_store

LENGTHS = [[5, 7], [4, 6], [9]]


@pytest.fixture(scope="session")
def running_server():
    with run_s3_server() as server:
        yield server


@pytest.fixture
def s3(running_server: S3Server, monkeypatch, tmp_path) -> S3Server:
    running_server.reset()
    for name, value in running_server.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DIFFPLAN_CACHE", str(tmp_path / "cache"))
    return running_server


@pytest.fixture
def url(s3: S3Server, request) -> str:
    """A prefix in a bucket that this test has for itself."""
    bucket = f"b-{time.time_ns()}"
    s3.client().create_bucket(Bucket=bucket)
    return f"s3://{bucket}/data/set"


def get_keys(s3: S3Server, url: str) -> list[str]:
    bucket, prefix = url.removeprefix("s3://").split("/", 1)
    listing = s3.client().list_objects_v2(Bucket=bucket, Prefix=prefix)
    return [entry["Key"].removeprefix(f"{prefix}/") for entry in listing.get("Contents", [])]


def test_a_dataset_is_the_same_as_on_the_local_disk(s3, url, tmp_path):
    write_dataset(tmp_path / "local", LENGTHS)
    write_dataset(url, LENGTHS)
    local, remote = open_dataset(tmp_path / "local"), open_dataset(url)
    assert remote.uri == url
    assert remote.content_hash() == local.content_hash()
    assert write_snapshot(remote) == 0
    pinned = open_dataset(url, snapshot=0)
    assert pinned.content_hash() == local.content_hash()
    assert [damage for damage in find_damage(open_store(url)) if damage] == []
    assert list_orphans(pinned) == []
    columns = ("action", "observation")
    expected, found = Windows(local, columns, 1), Windows(pinned, columns, 1)
    assert expected.count(3) == found.count(3) > 10
    chosen = np.arange(expected.count(3))
    np.testing.assert_array_equal(found.gather(chosen, 3), expected.gather(chosen, 3))
    cached = list((tmp_path / "cache" / pinned.manifest.dataset_uuid).iterdir())
    assert len(cached) == 3
    # What is in the cache is read from there.
    for shard in pinned.shards:
        pinned.store.delete(shard.name)
    np.testing.assert_array_equal(Windows(pinned, columns, 1).gather(chosen, 3), expected.gather(chosen, 3))


def test_a_changed_object_is_found_on_its_way_into_the_cache(s3, url, tmp_path):
    write_dataset(url, LENGTHS)
    dataset = open_dataset(url)
    shard = dataset.shards[1]
    content = bytearray(dataset.store.read(shard.name))
    content[shard.offsets["observation"] + 5] ^= 1
    bucket, prefix = url.removeprefix("s3://").split("/", 1)
    s3.client().put_object(Bucket=bucket, Key=f"{prefix}/{shard.name}", Body=bytes(content))
    dataset = open_dataset(url)  # the size is right
    with pytest.raises(DataError, match=rf"{shard.name}: expected checksum .* got .*the shard is damaged"):
        dataset.column(shard, "observation")
    assert list((tmp_path / "cache" / dataset.manifest.dataset_uuid).iterdir()) == []
    (damage,) = [damage for damage in find_damage(dataset.store) if damage]
    assert damage.units == (1,)


def test_reading_and_listing(s3, url):
    store = ObjectStore(url + "/")
    assert store.uri == url
    assert store.list("") == store.list("shards") == []
    store.write("shards/b", [b"01234", memoryview(b"56789")])
    store.write("shards/a", [b""])
    store.write("shards/deeper/c", [b"z"])
    store.write("shards2", [b"z"])
    bucket, prefix = url.removeprefix("s3://").split("/", 1)
    s3.client().put_object(Bucket=bucket, Key=f"{prefix}/shards/", Body=b"")  # as consoles do for a new folder
    assert [(s.name, s.num_bytes) for s in store.list("shards")] == [("shards/a", 0), ("shards/b", 10)]
    assert [s.name for s in store.list("")] == ["shards2"]
    assert store.read("shards/b") == b"0123456789"
    assert store.read("shards/a") == b""
    assert store.read_range("shards/b", 3, 4) == b"3456"
    assert store.read_range("shards/b", 8, 5) == b"89"
    assert store.read_range("shards/b", 10, 5) == store.read_range("shards/b", 2, 0) == b""
    with store.open("shards/b") as file:
        assert file.seek(-4, 2) == 6
        assert (file.read(2), file.read(), file.read()) == (b"67", b"89", b"")
        file.seek(1)
        assert file.read(3) == b"123"
    assert store.size("shards/b") == 10
    for read in (store.read, store.size, store.open, lambda name: store.read_range(name, 0, 1)):
        for name in ("shards/none", "shards/deeper"):
            with pytest.raises(FileNotFoundError, match=f"{url}/{name}"):
                read(name)
    store.delete("shards/b")
    store.delete("shards/b")
    assert [s.name for s in store.list("shards")] == ["shards/a"]


def test_listings_show_at_once_what_others_did(s3, url):
    ours, theirs = ObjectStore(url), ObjectStore(url)
    for i in range(3):
        theirs.write(f"commits/{i}", [b"x"])
        assert [s.name for s in ours.list("commits")] == [f"commits/{j}" for j in range(i + 1)]
    theirs.delete("commits/1")
    assert [s.name for s in ours.list("commits")] == ["commits/0", "commits/2"]


@pytest.mark.slow
def test_long_listings_are_read_to_their_end(s3, url):
    bucket, prefix = url.removeprefix("s3://").split("/", 1)
    client = s3.client()
    for i in range(1005):  # a page has 1000
        client.put_object(Bucket=bucket, Key=f"{prefix}/commits/{i:08d}.json", Body=b"x")
    assert list_committed_units(ObjectStore(url)) == list(range(1005))


@pytest.mark.slow
def test_large_shards_go_in_parts_and_nothing_is_seen_before_the_last(s3, url):
    store = ObjectStore(url)
    content = np.random.default_rng(0).bytes(70 * 2**20)
    store.write("shards/whole", [content[: 60 * 2**20]])
    store.write("shards/large", [content[: 2**20], content[2**20 :]])
    bucket, prefix = url.removeprefix("s3://").split("/", 1)
    tags = [s3.client().head_object(Bucket=bucket, Key=f"{prefix}/shards/{n}")["ETag"] for n in ("whole", "large")]
    assert ["-" in tag for tag in tags] == [False, True]  # those of objects in parts end in their number
    assert store.read("shards/large") == content
    file_system = store._file_system
    call = file_system._call_s3

    def fail_at_last(method, *args, **kwargs):
        if method == "complete_multipart_upload":
            raise OSError("struck before the last answer")
        return call(method, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_system, "_call_s3", fail_at_last)
        with pytest.raises(StoreError, match="struck before"):
            store.write("shards/torn", [content])
    assert [s.name for s in store.list("shards")] == ["shards/large", "shards/whole"]


def test_ages_are_measured_by_the_clock_of_the_server(s3, url):
    store = ObjectStore(url)
    store.write("shards/a", [b"x"])
    (stored,) = store.list("shards")
    assert -1 <= store.now_seconds() - stored.modified_seconds < 20
    assert abs(store.now_seconds() - time.time()) < 20
    assert get_keys(s3, url) == ["shards/a"]  # the probe of the clock is gone


NUM_WRITERS, NUM_NAMES = 8, 25


def race(url: str, writer: int, barrier, wins) -> None:
    store = ObjectStore(url)
    for i in range(NUM_NAMES):
        barrier.wait()
        if store.put_if_absent(f"commits/{i}", bytes([writer]) * 20_000):
            wins.put((i, writer))


@pytest.mark.slow
def test_exactly_one_of_many_processes_puts_each_object(s3, url):
    context = multiprocessing.get_context("spawn")
    barrier, wins = context.Barrier(NUM_WRITERS), context.Queue()
    writers = [context.Process(target=race, args=(url, i, barrier, wins)) for i in range(NUM_WRITERS)]
    for writer in writers:
        writer.start()
    won = [wins.get(timeout=200) for _ in range(NUM_NAMES)]
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert wins.empty()
    assert sorted(i for i, _ in won) == list(range(NUM_NAMES))
    store = ObjectStore(url)
    for i, writer in won:
        assert store.read(f"commits/{i}") == bytes([writer]) * 20_000
    assert len(get_keys(s3, url)) == NUM_NAMES  # no probe is left


# Forks writers, which share nothing, and kills each after a moment. The parent never opens a connection.
KILLER = """
import os, random, signal, sys, time
url, tests, num_units, num_kills = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
sys.path.insert(0, tests)
random.seed(int(sys.argv[5]))
import aiobotocore.session, s3fs
from made_up_episodes import make_episode
from diffplan.data.format.commit import list_committed_units
from diffplan.data.format.dataset import read_manifest
from diffplan.storage.object_store import ObjectStore
from diffplan.data.format.writer import write_unit

def write(ready):
    store = ObjectStore(url)
    manifest = read_manifest(store)
    units = sorted(set(range(num_units)) - set(list_committed_units(store)), key=lambda _: random.random())
    for i, unit in enumerate(units):
        write_unit(store, manifest, unit, [make_episode(2 * unit, 30), make_episode(2 * unit + 1, 20)])
        if i == 0:
            os.write(ready, b"x")  # from here on it writes all the time
    if not units:
        os.write(ready, b"x")

kills = whole = 0
for _ in range(3 * num_kills):
    if kills >= num_kills and whole:
        break
    reader, ready = os.pipe()
    children = []
    for _ in range(2):
        if (child := os.fork()) == 0:
            write(ready)
            os._exit(0)
        children.append(child)
    for _ in children:
        os.read(reader, 1)
    for child in children:
        if kills < num_kills:
            time.sleep(random.uniform(0, 0.1))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            kills += 1
        else:
            assert os.WEXITSTATUS(status) == 0
            whole += 1
    os.close(reader), os.close(ready)
print(kills)
"""


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_killed_writers_lose_and_repeat_nothing(s3, url, tmp_path, chaos_seed):
    num_units, num_kills = 250, 20
    manifest = create_dataset(url, make_manifest())
    arguments = [url, str(Path(__file__).parent), str(num_units), str(num_kills), str(chaos_seed)]
    process = subprocess.run([sys.executable, "-c", KILLER, *arguments], capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    assert int(process.stdout) >= num_kills
    for unit in range(num_units):
        write_unit(tmp_path / "local", manifest, unit, [make_episode(2 * unit, 30), make_episode(2 * unit + 1, 20)])
    create_dataset(tmp_path / "local", manifest)
    dataset = open_dataset(url)
    assert [e.episode_index for e in dataset.episodes] == list(range(2 * num_units))
    assert dataset.content_hash() == open_dataset(tmp_path / "local").content_hash()
    assert [damage for damage in find_damage(dataset.store) if damage] == []
    num_shards = len(dataset.store.list("shards"))
    assert num_shards == num_units + len(list_orphans(dataset))
    assert num_shards > num_units  # some were struck between shard and commit


@pytest.mark.slow
def test_a_commit_whose_answer_was_lost_is_found_to_be_ours(s3, url):
    store = ObjectStore(url)
    assert store.has_conditional_put()
    s3.lost_answers = 1
    assert store.put_if_absent("commits/x", b"ours") is False  # done, repeated by the library, refused
    assert store.read("commits/x") == b"ours"
    s3.lost_answers = 1
    manifest = make_manifest()
    assert create_dataset(store, manifest) == manifest
    s3.lost_answers = 1
    record = write_unit(store, manifest, 0, [make_episode(0, 5)])
    assert s3.lost_answers == 0
    assert open_dataset(url).shards == (record.shard,)  # the shard was not taken for a loser's
    assert list_orphans(open_dataset(url)) == []
    assert commit_unit(store, record).attempt == record.attempt
    s3.lost_answers = 1
    assert write_snapshot(open_dataset(url)) == 0
    assert open_dataset(url, snapshot=0).num_steps == 5


def test_an_attempt_that_never_learns_of_its_commit_is_found_by_the_next(s3, url, monkeypatch):
    store = ObjectStore(url)
    manifest = create_dataset(store, make_manifest())
    file_system = store._file_system
    pipe_file = file_system.pipe_file

    def pipe_and_lose(path, content, **options):
        pipe_file(path, content, **options)
        if options.get("mode") == "create":
            raise TimeoutError("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(file_system, "pipe_file", pipe_and_lose)
        with pytest.raises(StoreError, match="no answer"):
            write_unit(store, manifest, 0, [make_episode(0, 5)])
    first = open_dataset(url)
    record = write_unit(store, manifest, 0, [make_episode(0, 5)])
    assert record.shard == first.shards[0]
    assert len(store.list("shards")) == 1  # the second attempt dropped its own


@pytest.mark.slow
def test_conflicts_and_busy_servers_are_asked_again(s3, url):
    store = ObjectStore(url)
    assert store.has_conditional_put()
    s3.refusals.extend([(409, "ConditionalRequestConflict")] * 3)
    assert store.put_if_absent("a", b"x") is True
    s3.refusals.extend([(409, "ConditionalRequestConflict"), (412, "PreconditionFailed")])  # a 412 that says no more
    assert store.put_if_absent("b", b"x") is False
    s3.refusals.extend([(503, "SlowDown")] * 2)
    assert store.put_if_absent("c", b"x") is True
    s3.refusals.extend([(409, "ConditionalRequestConflict")] * 50)
    with pytest.raises(StoreError, match=rf"^{url}/d: the store failed \(.*a fault on demand\); try again"):
        store.put_if_absent("d", b"x")
    s3.refusals.clear()
    assert get_keys(s3, url) == ["a", "c"]


@pytest.mark.parametrize("fault", ["ignored", "not implemented"])
def test_servers_without_conditional_put_are_found_out_and_refused(s3, url, fault):
    s3.ignores_conditions = fault == "ignored"
    if fault == "not implemented":
        s3.refusals.extend([(501, "NotImplemented")] * 50)
    store = ObjectStore(url)
    assert store.has_conditional_put() is False
    num_puts = s3.num_puts
    assert store.has_conditional_put() is False
    assert pickle.loads(pickle.dumps(store)).has_conditional_put() is False
    assert s3.num_puts == num_puts  # asked once, the answer travels with the store
    with pytest.raises(DataError, match=r"puts objects only if absent.*to another store$"):
        write_dataset(url, LENGTHS)
    assert get_keys(s3, url) == []


def test_file_systems_that_only_look_first_are_refused():
    store = open_store("memory://some/dataset")
    assert isinstance(store, ObjectStore)
    with pytest.raises(DataError, match=r"^memory://some/dataset: expected a store that puts objects only if absent"):
        create_dataset(store, make_manifest())
    assert store.list("") == []
    store.replace("commits/x", b"first")
    assert [s.name for s in store.list("commits")] == ["commits/x"]
    assert abs(store.now_seconds() - time.time()) < 20
    assert store.read_range("commits/x", 1, 100) == b"irst"
    store.delete("commits/x")
    store.delete("commits/x")
    assert store.list("commits") == []


FORK = """
import os, sys
from diffplan.storage.object_store import ObjectStore

store = ObjectStore(sys.argv[1])
store.write("shards/a", [b"parent"])
if (child := os.fork()) == 0:
    store.write("shards/b", [store.read("shards/a") + b" and child"])
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print(store.read("shards/b").decode())
"""


def test_a_store_that_was_used_can_be_used_after_a_fork(s3, url):
    process = subprocess.run([sys.executable, "-c", FORK, url], capture_output=True, text=True, timeout=60)
    assert process.stdout == "parent and child\n", process.stderr


def assert_one_line(error: Exception, start: str) -> None:
    assert str(error).startswith(start)
    assert "\n" not in str(error)


def test_a_missing_bucket_is_said(s3):
    url = "s3://there-is-no-such-bucket/data"
    store = ObjectStore(url)
    for call in (
        lambda: open_dataset(url),
        lambda: store.list("commits"),
        lambda: store.size("x"),
        lambda: store.write("shards/x", [b"x"]),
        lambda: store.put_if_absent("x", b"x"),
        lambda: write_unit(store, make_manifest(), 0, [make_episode(0, 5)]),
    ):
        with pytest.raises(StoreError, match="expected a bucket, got none of this name; create it") as caught:
            call()
        assert_one_line(caught.value, url)


def test_strangers_are_told_to_look_at_their_credentials(s3, url, monkeypatch):
    write_dataset(url, LENGTHS)
    with s3.require_known_users():
        store = ObjectStore(url)
        for call in (lambda: read_manifest(store), lambda: store.list(""), lambda: store.put_if_absent("x", b"x")):
            with pytest.raises(StoreError, match=r"access denied .*check the credentials") as caught:
                call()
            assert_one_line(caught.value, url)
        # What cannot be read is not taken for damaged.
        with pytest.raises(StoreError, match="access denied"):
            list(find_damage(store))
    assert len(open_dataset(url).episodes) == 5


def test_missing_credentials_are_said(s3, url, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(StoreError, match=r"access denied .*Unable to locate credentials") as caught:
        open_dataset(url)
    assert_one_line(caught.value, url)


@pytest.mark.slow
def test_a_server_that_is_not_there_is_said_soon(s3, url, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    begin = time.monotonic()
    with pytest.raises(StoreError, match=rf"no answer \(.*127.0.0.1:{port}.*\); check the network") as caught:
        open_dataset(url)
    assert_one_line(caught.value, url)
    assert time.monotonic() - begin < 40


def test_urls_that_nothing_opens_are_said(monkeypatch):
    with pytest.raises(DataError, match=r"^nonsense://bucket/x: expected a path or a URL such as s3://"):
        open_store("nonsense://bucket/x")

    def missing(*args, **kwargs):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(DataError, match=r"no package is installed that opens s3:// \(pip install 'diffplan\[s3\]'\)"):
        open_store("s3://bucket/x")


def test_commits_are_named_by_unit(s3, url):
    write_dataset(url, LENGTHS)
    assert sorted(k for k in get_keys(s3, url) if not k.startswith("shards/")) == [
        "_dataset.json",
        *(commit_name(unit) for unit in range(3)),
    ]
