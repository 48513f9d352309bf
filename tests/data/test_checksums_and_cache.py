import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffplan.data.format.cache import fetch_shard
from diffplan.data.format.checksums import compute_checksums, read_checked, read_range
from diffplan.data.format.commit_record import CHUNK_BYTES, ShardRecord
from diffplan.errors import DataError, StoreError
from diffplan.storage.store import LocalStore

NUM_BYTES = 2 * CHUNK_BYTES + 1000  # the last chunk is short
CONTENT = np.random.default_rng(0).bytes(NUM_BYTES)
NAME = "shards/00000000-a.arrow"
EDGES = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, NUM_BYTES - 1, NUM_BYTES]
places = st.sampled_from(EDGES) | st.integers(0, NUM_BYTES)


def make_shard(content=CONTENT):
    return ShardRecord(NAME, len(content), 1, {}, compute_checksums(content))


def write(root, content):
    (root / "shards").mkdir(exist_ok=True)
    (root / NAME).write_bytes(content)
    return LocalStore(root)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write(tmp_path_factory.mktemp("sound"), CONTENT)


def flip(place):
    return CONTENT[:place] + bytes([CONTENT[place] ^ 1]) + CONTENT[place + 1 :]


@given(first=places, second=places, verify=st.booleans())
def test_range_is_the_bytes(store, first, second, verify):
    start, end = sorted((first, second))
    assert read_range(store, make_shard(), start, end - start, verify=verify) == CONTENT[start:end]


@pytest.mark.parametrize("place", [place for place in EDGES if place < NUM_BYTES])
def test_flip_is_found_exactly_where_its_chunk_is_touched(tmp_path, place):
    store = write(tmp_path, flip(place))
    chunk = place // CHUNK_BYTES
    for start, end in (
        (0, 1),
        (CHUNK_BYTES, CHUNK_BYTES + 1),
        (CHUNK_BYTES - 1, CHUNK_BYTES + 1),
        (NUM_BYTES - 1, NUM_BYTES),
    ):
        touched = start // CHUNK_BYTES <= chunk <= (end - 1) // CHUNK_BYTES
        if touched:
            with pytest.raises(DataError, match=f"{NAME}: expected checksum .* from {chunk * CHUNK_BYTES}, got"):
                read_range(store, make_shard(), start, end - start, verify=True)
        else:
            assert read_range(store, make_shard(), start, end - start, verify=True) == CONTENT[start:end]
        assert read_range(store, make_shard(), start, end - start, verify=False) == flip(place)[start:end]
    with pytest.raises(DataError, match="expected checksum"):
        list(read_checked(store, make_shard()))


def test_checksums_are_those_of_the_chunks():
    chunks = [CONTENT[i : i + CHUNK_BYTES] for i in range(0, NUM_BYTES, CHUNK_BYTES)]
    assert compute_checksums(CONTENT) == tuple(zlib.crc32(chunk) for chunk in chunks)
    assert compute_checksums(b"") == ()
    assert len(compute_checksums(CONTENT[: 2 * CHUNK_BYTES])) == 2


@pytest.mark.parametrize("verify", [False, True])
def test_short_file_is_an_error(tmp_path, verify):
    store = write(tmp_path, CONTENT[:-1])
    with pytest.raises(DataError, match=f"{NAME}: expected {NUM_BYTES} bytes, the file ends after {NUM_BYTES - 1}"):
        read_range(store, make_shard(), NUM_BYTES - 10, 10, verify=verify)


def test_local_store_is_read_in_place(store):
    assert fetch_shard(store, make_shard(), "uuid") == store.root / NAME


class Remote:
    """Wraps a directory, so that nothing of it can be mapped."""

    is_local = False

    def __init__(self, store):
        self._store, self.num_reads = store, 0

    def locate(self, name):
        return f"far/{name}"

    def read_range(self, name, start, num_bytes):
        self.num_reads += 1
        return self._store.read_range(name, start, num_bytes)


@pytest.mark.parametrize("found", [None, b"", CONTENT[:-1], CONTENT + b"x"])
def test_copy_of_a_wrong_size_is_fetched_again(store, tmp_path, monkeypatch, found):
    monkeypatch.setenv("DIFFPLAN_CACHE", str(tmp_path))
    copy = tmp_path / "uuid" / "00000000-a.arrow"
    if found is not None:
        copy.parent.mkdir()
        copy.write_bytes(found)
    remote = Remote(store)
    for _ in range(2):  # the second time from the cache
        assert fetch_shard(remote, make_shard(), "uuid") == copy
        assert copy.read_bytes() == CONTENT
        assert remote.num_reads == 1
    assert list(copy.parent.iterdir()) == [copy]


def test_damaged_shard_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFPLAN_CACHE", str(tmp_path / "cache"))
    remote = Remote(write(tmp_path, flip(5)))
    with pytest.raises(DataError, match=r"far/shards/00000000-a\.arrow: expected checksum"):
        fetch_shard(remote, make_shard(), "uuid")
    assert list((tmp_path / "cache" / "uuid").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_one_clear_error(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("DIFFPLAN_CACHE", str(tmp_path / "file"))
    near = write(tmp_path, CONTENT)
    far = SimpleNamespace(read_range=near.read_range, locate=near.locate, size=near.size)
    with pytest.raises(StoreError, match="set DIFFPLAN_CACHE to another directory"):
        fetch_shard(far, make_shard(), "uuid")
