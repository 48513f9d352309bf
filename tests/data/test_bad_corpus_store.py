"""Every way in which manifest, commits, snapshots and the file system can be wrong."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from damaged_datasets import LENGTHS, Case, nested_record, prepare, read_in_process
from made_up_episodes import (
    commit_of,
    edit_record,
    edit_shard_record,
    make_episode,
    make_manifest,
    require_undamaged,
    shard_of,
    write_dataset,
)

from diffplan.data.format.dataset import list_orphans, open_dataset, write_snapshot
from diffplan.data.format.writer import create_dataset, write_unit
from diffplan.data.maintenance.sweeping import find_sweepable
from diffplan.errors import DataError, StoreError
from diffplan.storage.opening import open_store

MANIFEST, COMMIT, SNAPSHOT = "_dataset.json", "commits/00000001.json", "snapshots/0.parquet"


def put(name: str, content: bytes | None = None, *, keep: float = 0.0):
    """Put other bytes in the place of a file: those given, or the first part of its own."""

    def damage(root: Path) -> Path:
        if name == SNAPSHOT:
            write_snapshot(open_dataset(root))
        path = root / name
        good = path.read_bytes()
        path.write_bytes(good[: int(len(good) * keep)] if content is None else content)
        return path

    return damage


def edited(name: str, **changes: object):
    def damage(root: Path) -> Path:
        edit_record(root / name, **changes)
        return root / name

    return damage


def without_manifest(root: Path) -> Path:
    (root / MANIFEST).unlink()
    return root


def in_a_loop(root: Path) -> Path:
    shutil.rmtree(root)
    root.symlink_to(root.name)
    return root


def a_file(root: Path) -> Path:
    shutil.rmtree(root)
    root.write_bytes(b"not a dataset")
    return root


def escaping(root: Path) -> Path:
    shutil.copy(shard_of(root, 1), root.parent / "outside.arrow")
    edit_shard_record(root, 1, name="shards/../../outside.arrow")
    return root / COMMIT


def renamed(root: Path) -> Path:
    commit_of(root, 1).rename(commit_of(root, 7))
    return commit_of(root, 7)


def of_another_dataset(root: Path) -> Path:
    write_dataset(root.parent / "another", LENGTHS)
    shutil.copy(commit_of(root.parent / "another", 1), root / COMMIT)
    shutil.rmtree(root.parent / "another")
    return root / COMMIT


def snapshot_of_another_dataset(root: Path) -> Path:
    write_dataset(root.parent / "another", LENGTHS)
    write_snapshot(open_dataset(root.parent / "another"))
    shutil.copytree(root.parent / "another" / "snapshots", root / "snapshots")
    shutil.rmtree(root.parent / "another")
    return root / SNAPSHOT


CASES = [
    Case("manifest_missing", without_manifest, "open", "no _dataset.json", cure="diffplan collect"),
    Case("root_is_a_file", a_file, "open", "no _dataset.json", cure="diffplan collect"),
    Case("root_is_a_symlink_loop", in_a_loop, "open", "no _dataset.json", cure="diffplan collect"),
    Case("manifest_empty", put(MANIFEST, b""), "open", "expected a dataset manifest", cure="damaged"),
    Case("manifest_half_written", put(MANIFEST, keep=0.5), "open", "expected a dataset manifest", cure="damaged"),
    Case("manifest_not_utf8", put(MANIFEST, b"\xff\xfe{}"), "open", "expected a dataset manifest", cure="damaged"),
    Case("manifest_nested", put(MANIFEST, nested_record()), "open", "expected a dataset manifest", cure="damaged"),
    Case("manifest_newer", edited(MANIFEST, format_version=2), "open", "diffplan-trajectories version 2", "read it"),
    Case("manifest_feature", edited(MANIFEST, features=["zip"]), "open", "needs features ['zip']", "upgrade diffplan"),
    Case("commit_empty", put(COMMIT, b""), "open", "expected a commit record", cure="--resume"),
    Case("commit_half_written", put(COMMIT, keep=0.5), "open", "expected a commit record", cure="--resume"),
    Case("commit_not_utf8", put(COMMIT, b"\xff\xfe{}"), "open", "expected a commit record", cure="--resume"),
    Case("commit_not_json", put(COMMIT, b"unit: 1\n"), "open", "expected a commit record", cure="--resume"),
    Case("commit_nested", put(COMMIT, nested_record()), "open", "expected a commit record", cure="--resume"),
    Case("commit_outside_the_root", escaping, "open", "expected a shard inside the dataset", cure="--resume"),
    Case("commit_of_another_unit", renamed, "open", "expected unit 7, got 1", cure="renamed"),
    Case("commit_of_another_dataset", of_another_dataset, "open", "expected dataset", cure="misplaced"),
    Case("snapshot_empty", put(SNAPSHOT, b""), "open", "expected a snapshot", cure="delete it"),
    Case("snapshot_truncated", put(SNAPSHOT, keep=0.9), "open", "expected a snapshot", cure="delete it"),
    Case("snapshot_of_another_dataset", snapshot_of_another_dataset, "open", "it belongs to dataset", cure="delete it"),
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> dict[str, tuple[Path, Path]]:
    return prepare(tmp_path_factory.mktemp("store"), CASES)


@pytest.fixture(scope="module")
def outcomes(prepared) -> dict[Path, dict]:
    return read_in_process([root for root, _ in prepared.values()])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_record(case, prepared, outcomes):
    root, named = prepared[case.name]
    found = outcomes[root]
    assert "crash" not in found, found
    kind, message = found["open"]
    assert kind == "DataError", message
    assert str(named) in message
    assert "\n" not in message
    assert case.words in message
    assert case.cure in message
    for command in ("info", "verify"):
        done = found[command]
        assert done["code"] == 2, done
        assert done["err"].splitlines()[-1].startswith("error: "), done
        assert done["err"].count("error: ") == 1, done
        assert "Traceback" not in done["err"], done
    curable = case.name.startswith(("commit", "snapshot"))  # what a dataset is cannot be made up
    assert (found["drop"]["code"] == 0) == curable, found["drop"]
    assert (found["verify_again"]["code"] == 0) == curable, found["verify_again"]
    assert (found["open_again"] is None) == curable


def test_snapshot_that_is_missing_or_whose_shard_is_gone(tmp_path):
    write_dataset(tmp_path, LENGTHS)
    write_snapshot(open_dataset(tmp_path))
    with pytest.raises(DataError, match=rf"{tmp_path}: expected one of the snapshots \[0\], got 4"):
        open_dataset(tmp_path, snapshot=4)
    shard = shard_of(tmp_path, 2)
    shard.unlink()
    with pytest.raises(DataError, match=rf"{shard}: the shard of unit 2 is missing; delete .* --resume"):
        open_dataset(tmp_path, snapshot=0)


def test_what_killed_writers_leave_is_ignored_and_counted(tmp_path):
    write_dataset(tmp_path, LENGTHS)
    before = open_dataset(tmp_path).content_hash()
    orphan = tmp_path / "shards" / "00000009-0123456789ab.arrow"
    orphan.write_bytes(shard_of(tmp_path, 0).read_bytes()[:50])
    for directory in ("", "shards", "commits", "snapshots"):  # killed between fsync and link
        (tmp_path / directory).mkdir(exist_ok=True)
        (tmp_path / directory / ".tmp-0123").write_bytes(b'{"checksum": "')
    dataset = open_dataset(tmp_path)
    assert dataset.content_hash() == before
    assert list_orphans(dataset) == ["shards/00000009-0123456789ab.arrow"]
    require_undamaged(tmp_path)
    assert find_sweepable(open_store(tmp_path), 3600) == []
    for path in (orphan, *tmp_path.rglob(".tmp-*")):
        os.utime(path, (0, 0))
    assert len(find_sweepable(open_store(tmp_path), 3600)) == 5


def test_clock_of_this_machine_does_not_age_files(tmp_path, monkeypatch):
    write_dataset(tmp_path, LENGTHS)
    (tmp_path / "shards" / ".tmp-0123").touch()
    monkeypatch.setattr("time.time", lambda: 4e9)
    assert find_sweepable(open_store(tmp_path), 3600) == []


@pytest.mark.parametrize("name", [MANIFEST, COMMIT, SNAPSHOT, "commits"])
@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE], ids=errno.errorcode.get)
def test_what_cannot_be_read_is_not_taken_for_damaged(tmp_path, monkeypatch, name, code):
    """Injected, since nothing is unreadable to a superuser."""
    write_dataset(tmp_path, LENGTHS)
    if name == SNAPSHOT:
        write_snapshot(open_dataset(tmp_path))

    def refuse(function):
        def call(path, *arguments, **options):
            if Path(path) == tmp_path / name:
                raise OSError(code, os.strerror(code), str(path))
            return function(path, *arguments, **options)

        return call

    for owner, attribute in ((os, "open"), (os, "scandir")):
        monkeypatch.setattr(owner, attribute, refuse(getattr(owner, attribute)))
    for read in (open_dataset, require_undamaged):
        with pytest.raises(StoreError, match=rf"{tmp_path / name}: cannot be read \(.*\); check the permissions"):
            read(tmp_path)


@pytest.mark.parametrize("call", ["write", "fsync", "link"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES], ids=errno.errorcode.get)
def test_refused_writes_leave_the_dataset_as_it_was(tmp_path, monkeypatch, call, code):
    manifest = create_dataset(tmp_path / "a", make_manifest())
    write_unit(tmp_path / "a", manifest, 0, [make_episode(0, 5)])
    before = sorted(path for path in (tmp_path / "a").rglob("*") if path.is_file())

    def refuse(*arguments, **options):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        if call == "write":
            patched.setattr(Path, "open", refuse)
        else:
            patched.setattr(os, call, refuse)
        cure = "make room or mend the permissions, then go on with --resume"
        with pytest.raises(DataError, match=rf"a: unit 1 could not be written \({os.strerror(code)}\); {cure}"):
            write_unit(tmp_path / "a", manifest, 1, [make_episode(1, 5)])
        with pytest.raises(StoreError, match=rf"b: the dataset could not be created \({os.strerror(code)}\)"):
            create_dataset(tmp_path / "b", make_manifest())
        if call != "write":  # which reads need too
            with pytest.raises(StoreError, match=r"0\.parquet: the snapshot could not be written"):
                write_snapshot(open_dataset(tmp_path / "a"))
    left = sorted(path for path in (tmp_path / "a").rglob("*") if path.is_file())
    if call == "link":  # a network file system may have made the link for all that: the shard waits to be swept
        (name,) = list_orphans(open_dataset(tmp_path / "a"))
        left.remove(tmp_path / "a" / name)
    assert left == before
    write_unit(tmp_path / "a", manifest, 1, [make_episode(1, 5)])
    assert len(open_dataset(tmp_path / "a").episodes) == 2


MANY_SHARDS = """
import resource, sys
from diffplan.data.format.dataset import open_dataset
from diffplan.errors import DataError
dataset = open_dataset(sys.argv[1])
dataset.column(dataset.shards[0], "reward")
resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))
try:
    for shard in dataset.shards:
        dataset.column(shard, "reward")
except DataError as error:
    print(error)
"""


def test_more_shards_than_open_files_are_allowed(tmp_path):
    write_dataset(tmp_path, [[2]] * 40)
    done = subprocess.run(
        [sys.executable, "-c", MANY_SHARDS, tmp_path], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert str(tmp_path / "shards") in line
    assert "ulimit -n" in line
    assert "compact the dataset" in line
