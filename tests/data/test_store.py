import errno
import io
import multiprocessing
import os
import pickle
import stat
from pathlib import Path

import pytest
from made_up_episodes import make_episode, make_manifest

from diffplan.data.format.dataset import open_dataset
from diffplan.data.format.writer import create_dataset, write_unit
from diffplan.errors import DataError, StoreError
from diffplan.storage.opening import open_store
from diffplan.storage.store import LocalStore

NUM_WRITERS, NUM_NAMES = 8, 50


def race(root: Path, writer: int, barrier, wins) -> None:
    store = LocalStore(root)
    for i in range(NUM_NAMES):
        barrier.wait()
        if store.put_if_absent(f"commits/{i}", bytes([writer]) * 50_000):
            wins.put((i, writer))


def test_exactly_one_of_many_processes_puts_each_object(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, wins = context.Barrier(NUM_WRITERS), context.Queue()
    writers = [context.Process(target=race, args=(tmp_path, i, barrier, wins)) for i in range(NUM_WRITERS)]
    for writer in writers:
        writer.start()
    won = [wins.get(timeout=120) for _ in range(NUM_NAMES)]
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert wins.empty()
    assert sorted(i for i, _ in won) == list(range(NUM_NAMES))
    for i, writer in won:
        assert (tmp_path / f"commits/{i}").read_bytes() == bytes([writer]) * 50_000
    assert len(os.listdir(tmp_path / "commits")) == NUM_NAMES  # no temporary file is left


def test_a_link_that_was_made_counts_though_failure_was_reported(tmp_path, monkeypatch):
    link = os.link

    def link_and_fail(source, target):
        link(source, target)
        raise OSError(errno.EIO, "the server did not answer")

    monkeypatch.setattr(os, "link", link_and_fail)
    store = LocalStore(tmp_path)
    assert store.put_if_absent("commit", b"ours") is True
    assert store.put_if_absent("commit", b"theirs") is False
    assert store.read("commit") == b"ours"
    assert os.listdir(tmp_path) == ["commit"]


def test_a_link_that_was_not_made_is_an_error_and_leaves_nothing(tmp_path, monkeypatch):
    def fail(source, target):
        raise OSError(errno.EIO, "the server did not answer")

    monkeypatch.setattr(os, "link", fail)
    with pytest.raises(OSError, match="did not answer"):
        LocalStore(tmp_path).put_if_absent("commit", b"ours")
    assert os.listdir(tmp_path) == []


class FileOnFullDisk(io.FileIO):
    """A file on a disk that has room for 1000 bytes more."""

    def write(self, content) -> int:
        room = 1000 - self.tell()
        if room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(bytes(content[:room]))


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    manifest = create_dataset(tmp_path, make_manifest())
    write_unit(tmp_path, manifest, 0, [make_episode(0, 5)])
    content = open_dataset(tmp_path).content_hash()
    open_file = Path.open

    def open_on_full_disk(path, mode="r", *args, **kwargs):
        return FileOnFullDisk(path, "xb") if mode == "xb" else open_file(path, mode, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_on_full_disk)
        with pytest.raises(DataError, match=r"unit 1 could not be written \(No space left on device\); make room"):
            write_unit(tmp_path, manifest, 1, [make_episode(1, 50)])
        with pytest.raises(OSError, match="No space"):
            LocalStore(tmp_path).put_if_absent("commits/00000001.json", bytes(5000))
    assert len(os.listdir(tmp_path / "shards")) == len(os.listdir(tmp_path / "commits")) == 1
    assert open_dataset(tmp_path).content_hash() == content
    write_unit(tmp_path, manifest, 1, [make_episode(1, 50)])  # there is room again
    assert len(open_dataset(tmp_path).episodes) == 2


def test_shards_cannot_be_written_again(tmp_path):
    store = LocalStore(tmp_path)
    store.write("shards/one", [b"abc", memoryview(b"defg")])
    assert store.read("shards/one") == b"abcdefg"
    assert stat.S_IMODE((tmp_path / "shards/one").stat().st_mode) == 0o444
    with pytest.raises(FileExistsError):
        store.write("shards/one", [b"other"])
    assert store.read("shards/one") == b"abcdefg"


def test_ages_are_measured_by_the_clock_of_the_file_system(tmp_path):
    store = LocalStore(tmp_path)
    store.write("shards/old", [b"x"])
    store.write("shards/new", [b"xy"])
    os.utime(tmp_path / "shards/old", (0, store.now_seconds() - 3600))
    ages = {stored.name: store.now_seconds() - stored.modified_seconds for stored in store.list("shards")}
    assert ages["shards/old"] == pytest.approx(3600, abs=20)
    assert 0 <= ages["shards/new"] < 20
    assert os.listdir(tmp_path) == ["shards"]  # the probe of the clock is gone


def test_reading(tmp_path):
    store = LocalStore(tmp_path)
    store.write("shards/b", [b"0123456789"])
    store.write("shards/a", [b""])
    store.write("shards/deeper/c", [b"z"])
    assert [(s.name, s.num_bytes) for s in store.list("shards")] == [("shards/a", 0), ("shards/b", 10)]
    assert store.list("nowhere") == []
    assert store.read_range("shards/b", 3, 4) == b"3456"
    assert store.read_range("shards/b", 8, 5) == b"89"
    assert store.read_range("shards/b", 20, 5) == b""
    assert store.size("shards/b") == 10
    for read in (store.read, store.size, store.open, lambda name: store.read_range(name, 0, 1)):
        with pytest.raises(FileNotFoundError):
            read("shards/none")
    store.delete("shards/b")
    store.delete("shards/b")
    assert [s.name for s in store.list("shards")] == ["shards/a"]


def test_a_store_is_opened_from_paths_urls_and_stores(tmp_path):
    for where in (tmp_path, str(tmp_path), f"file://{tmp_path}"):
        store = open_store(where)
        assert store.uri == str(tmp_path)
        assert open_store(store) is store
        assert pickle.loads(pickle.dumps(store)).uri == store.uri
    with pytest.raises(DataError, match="expected a bucket and a prefix"):
        open_store("s3://")


WRITES = {
    "delete": lambda store, name: store.delete(name),
    "write": lambda store, name: store.write(name, [b"new"]),
    "replace": lambda store, name: store.replace(name, b"new"),
    "put_if_absent": lambda store, name: store.put_if_absent(name, b"new"),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("depth", ["linked/x", "a/linked/x", "linked/b/x"])
def test_nothing_is_written_or_deleted_through_a_link(tmp_path, write, depth):
    elsewhere, root = tmp_path / "elsewhere", tmp_path / "root"
    (elsewhere / "b").mkdir(parents=True)
    for path in (elsewhere / "x", elsewhere / "b" / "x"):
        path.write_bytes(b"mine")
    link = root / depth[: depth.index("linked") + len("linked")]
    link.parent.mkdir(parents=True)
    link.symlink_to(elsewhere)
    for name in (depth, depth.replace("/x", "/y")):
        with pytest.raises(StoreError, match="linked: expected a directory, got a symbolic link") as caught:
            write(LocalStore(root), name)
        assert "\n" not in str(caught.value)
    assert sorted(path.name for path in elsewhere.rglob("*")) == ["b", "x", "x"]
    assert (elsewhere / "x").read_bytes() == (elsewhere / "b" / "x").read_bytes() == b"mine"


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", ".."])
def test_no_name_leads_out_of_a_store(tmp_path, write, name):
    (tmp_path / "root").mkdir()
    (tmp_path / "x").write_bytes(b"mine")
    with pytest.raises(StoreError, match="expected a name inside this directory"):
        write(LocalStore(tmp_path / "root"), name)
    assert (tmp_path / "x").read_bytes() == b"mine"


def test_a_link_of_the_name_itself_is_replaced_or_deleted_and_never_followed(tmp_path):
    mine, store = tmp_path / "mine", LocalStore(tmp_path / "root")
    mine.write_bytes(b"mine")
    link = tmp_path / "root" / "a" / "x"
    link.parent.mkdir(parents=True)
    link.symlink_to(mine)
    assert not store.put_if_absent("a/x", b"new")
    with pytest.raises(FileExistsError):
        store.write("a/x", [b"new"])
    store.delete("a/x")
    assert not link.is_symlink()
    link.symlink_to(mine)
    store.replace("a/x", b"new")
    assert not link.is_symlink()
    assert store.read("a/x") == b"new"
    assert mine.read_bytes() == b"mine"


def test_the_store_itself_may_lie_behind_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    store = LocalStore(tmp_path / "link")
    store.write("a/b/x", [b"1"])
    store.replace("a/b/x", b"2")
    store.delete("a/b/x")
    assert store.put_if_absent("a/b/x", b"3")
    assert (tmp_path / "real/a/b/x").read_bytes() == b"3"


@pytest.mark.parametrize("read", ["read", "open", "read_range"])
def test_only_regular_files_are_read(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "directory").mkdir()
    store = LocalStore(tmp_path)
    arguments = (0, 4) if read == "read_range" else ()
    for name in ("pipe", "device"):
        with pytest.raises(StoreError, match=f"{name}: expected a regular file, got a pipe, device or socket; put the"):
            getattr(store, read)(name, *arguments)
    with pytest.raises(IsADirectoryError):
        getattr(store, read)("directory", *arguments)
