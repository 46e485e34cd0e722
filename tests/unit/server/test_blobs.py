"""The blob store: named by content, durable when it says so, and nothing left behind when it does not."""

import errno
import hashlib
import os
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from server.blobs import (
    Blob,
    BlobDamaged,
    BlobMissing,
    BlobStore,
    BlobStoreFailed,
    BlobStoreFull,
)
from server.formats import FormatRefused
from tests.unit.server.disk_images import tiny_qcow2, tiny_raw

MIB = 1 << 20
DATA = tiny_qcow2(4 * MIB)
NAME = hashlib.sha256(DATA).hexdigest()
OTHER = tiny_raw(2 * MIB, salt=b"other")


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


def put(store: BlobStore, data: bytes = DATA) -> Blob:
    with store.begin() as writer:
        for start in range(0, len(data), 1000):
            writer.write(data[start : start + 1000])
        return writer.commit()


def read(store: BlobStore, sha256: str = NAME, *, offset: int = 0, chunk_bytes: int = 1000) -> bytes:
    return b"".join(store.read(sha256, offset=offset, chunk_bytes=chunk_bytes))


def incoming(store: BlobStore) -> list[Path]:
    return list((store.root / "incoming").iterdir())


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0


def failing(error: int) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(error, os.strerror(error))

    return fail


def failing_for_folders() -> Callable[[int], None]:
    """An fsync that works for files alone."""
    fsync = os.fsync

    def fail(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, "broken")
        fsync(descriptor)

    return fail


def test_a_blob_is_stored_under_its_digest(store: BlobStore) -> None:
    blob = put(store)
    assert blob == Blob(sha256=NAME, format="qcow2", size=4 * MIB, storage_size=len(DATA))
    path = store.path_of(NAME)
    assert path == store.root / NAME[:2] / NAME[2:4] / NAME
    assert path.read_bytes() == DATA
    assert stat.S_IMODE(path.stat().st_mode) & 0o137 == 0
    assert incoming(store) == []
    assert store.exists(NAME)
    assert store.size(NAME) == len(DATA)
    with store.open(NAME) as file:
        assert file.read() == DATA


def test_a_second_writer_of_the_same_bytes_writes_nothing(store: BlobStore) -> None:
    put(store)
    inode = store.path_of(NAME).stat().st_ino
    assert put(store) == put(store)
    assert store.path_of(NAME).stat().st_ino == inode
    assert store.count_and_bytes() == (1, len(DATA))
    assert incoming(store) == []


@pytest.mark.parametrize("store_bytes", [DATA[:-1], b"\xff" + DATA[1:], b""], ids=["cut", "flipped", "empty"])
def test_a_damaged_blob_is_replaced_by_right_bytes(store: BlobStore, store_bytes: bytes) -> None:
    put(store)
    store.count_and_bytes()
    store.path_of(NAME).write_bytes(store_bytes)
    put(store)
    assert read(store) == DATA


def test_many_writers_of_the_same_bytes_at_once(store: BlobStore) -> None:
    barrier = threading.Barrier(8)

    def write() -> Blob:
        with store.begin() as writer:
            writer.write(OTHER)
            barrier.wait(timeout=30)
            return writer.commit()

    with ThreadPoolExecutor(8) as pool:
        blobs = [future.result() for future in [pool.submit(write) for _ in range(8)]]
    assert len(set(blobs)) == 1
    assert read(store, blobs[0].sha256, chunk_bytes=MIB) == OTHER
    assert store.count_and_bytes() == (1, len(OTHER))
    assert incoming(store) == []


def test_leaving_without_commit_leaves_nothing(store: BlobStore) -> None:
    before = open_files()
    with store.begin() as writer:
        writer.write(DATA)
        assert writer.sha256 == NAME
        assert writer.written_bytes == len(DATA)
        assert len(incoming(store)) == 1
    assert incoming(store) == []
    assert not store.exists(NAME)
    assert open_files() == before


@pytest.mark.parametrize("data", [b"", b"odd", b"\x1f\x8b\x08" + bytes(70_000)], ids=["empty", "odd", "gzip"])
def test_refused_bytes_leave_nothing(store: BlobStore, data: bytes) -> None:
    before = open_files()
    with pytest.raises(FormatRefused):
        put(store, data)
    assert incoming(store) == []
    assert store.count_and_bytes() == (0, 0)
    assert open_files() == before


def test_a_writer_is_used_once(store: BlobStore) -> None:
    with store.begin() as writer:
        writer.write(DATA)
        writer.commit()
        with pytest.raises(AssertionError):
            writer.write(b"more")
        with pytest.raises(AssertionError):
            writer.commit()
    writer.abort()
    assert read(store) == DATA


def test_bytes_reach_the_disk_before_the_name_and_the_name_before_the_answer(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, os.rename

    def record_fsync(descriptor: int) -> None:
        fsync(descriptor)
        kind = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        done.append(Path(f"/proc/self/fd/{descriptor}").readlink().name if kind else "file")

    def record_rename(*arguments: str, **folders: int) -> None:
        rename(*arguments, **folders)
        done.append("rename")

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc to name descriptors")
    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "rename", record_rename)
    put(store)
    folders = [NAME[2:4], NAME[:2], "blobs"]
    assert done == ["file", "rename", *folders]
    done.clear()
    put(store)
    assert done == ["file", *folders]


@pytest.mark.parametrize(
    ("call", "number", "raised"),
    [
        pytest.param("write", errno.ENOSPC, BlobStoreFull, id="write-full"),
        pytest.param("write", errno.EDQUOT, BlobStoreFull, id="write-quota"),
        pytest.param("write", errno.EIO, BlobStoreFailed, id="write-broken"),
        pytest.param("fsync", errno.ENOSPC, BlobStoreFull, id="fsync-full"),
        pytest.param("fsync", errno.EIO, BlobStoreFailed, id="fsync-broken"),
        pytest.param("mkdir", errno.ENOSPC, BlobStoreFull, id="mkdir-full"),
        pytest.param("rename", errno.EIO, BlobStoreFailed, id="rename-broken"),
    ],
)
def test_a_failure_before_the_rename(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch, call: str, number: int, raised: type[BlobStoreFailed]
) -> None:
    before = open_files()
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing(number))
        with pytest.raises(raised) as failed:
            put(store)
    assert failed.value.errno == number
    assert not store.exists(NAME)
    assert incoming(store) == []
    assert open_files() == before
    assert put(store).sha256 == NAME
    assert read(store) == DATA


@pytest.mark.parametrize("folder", [0, 1, 2])
def test_a_failure_after_the_rename_is_no_blob(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch, folder: int
) -> None:
    store.count_and_bytes()
    fsync = os.fsync
    folders: list[int] = []

    def fail_at(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            folders.append(descriptor)
            if len(folders) > folder:
                raise OSError(errno.EIO, "broken")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail_at)
        with pytest.raises(BlobStoreFailed):
            put(store)
    assert not store.exists(NAME)
    assert store.count_and_bytes() == (0, 0)
    put(store)
    assert store.count_and_bytes() == (1, len(DATA))


@pytest.mark.parametrize("damaged", [False, True], ids=["whole", "damaged"])
def test_a_failure_over_a_blob_that_others_use_leaves_one_and_is_not_trusted(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    """Either the one that was there, or the new one; and the next try does not take its name for durable."""
    put(store)
    if damaged:
        store.path_of(NAME).write_bytes(bytes(len(DATA)))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing_for_folders())
        with pytest.raises(BlobStoreFailed):
            put(store)
    assert read(store) == DATA
    there = store.path_of(NAME).stat().st_ino
    put(store)
    assert store.path_of(NAME).stat().st_ino != there
    there = store.path_of(NAME).stat().st_ino
    put(store)
    assert store.path_of(NAME).stat().st_ino == there
    assert store.count_and_bytes() == (1, len(DATA))


def test_a_name_that_could_not_be_taken_back_is_not_trusted(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing_for_folders())
        patch.setattr(os, "unlink", failing(errno.EROFS))
        with pytest.raises(BlobStoreFailed) as failed:
            put(store)
    assert failed.value.errno == errno.EIO
    there = store.path_of(NAME).stat().st_ino
    put(store)
    assert store.path_of(NAME).stat().st_ino != there
    assert read(store) == DATA


class PowerLoss(BaseException):
    """Nothing after it runs: not even clean-up."""


@pytest.mark.parametrize("renamed", [False, True], ids=["before-the-rename", "after-the-rename"])
def test_a_crash_is_swept(store: BlobStore, monkeypatch: pytest.MonkeyPatch, renamed: bool) -> None:
    rename = os.rename

    def crash(*arguments: str, **folders: int) -> None:
        if renamed:
            rename(*arguments, **folders)
        raise PowerLoss

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", crash)
        patch.setattr(BlobStore, "_drop_incoming", lambda *_: None)
        with pytest.raises(PowerLoss):
            put(store)
    assert store.exists(NAME) is renamed
    after = BlobStore(store.root)
    assert after.digests() == ([NAME] if renamed else [])
    assert after.remove_unused(NAME, unused) is renamed
    after.clean_incoming()
    assert incoming(after) == []
    assert after.count_and_bytes() == (0, 0)
    assert put(after).sha256 == NAME


def unused(sha256: str) -> bool:
    return False


def test_a_pinned_blob_stays_until_it_is_released(store: BlobStore) -> None:
    put(store)
    put(store)
    assert not store.remove_unused(NAME, unused)
    store.release(NAME)
    assert not store.remove_unused(NAME, unused)
    store.release(NAME)
    assert store.remove_unused(NAME, unused)
    assert not store.exists(NAME)


def test_a_used_blob_stays(store: BlobStore) -> None:
    put(store)
    store.release(NAME)
    assert not store.remove_unused(NAME, lambda sha256: sha256 == NAME)
    assert store.exists(NAME)


def test_use_is_asked_after_the_pins(store: BlobStore) -> None:
    """Else: not used yet, then its event becomes durable and the pin goes, then it is removed."""
    put(store)
    asked: list[str] = []
    store.remove_unused(NAME, lambda sha256: bool(asked.append(sha256)))
    assert asked == []


def test_digests_are_of_blobs_alone(store: BlobStore) -> None:
    blobs = [put(store), put(store, OTHER)]
    (store.path_of(NAME).parent / "notes.txt").write_text("not ours")
    assert sorted(store.digests()) == sorted(blob.sha256 for blob in blobs)


def test_cleaning_spares_what_is_arriving(store: BlobStore) -> None:
    (store.root / "incoming" / "left-by-a-crash").write_bytes(b"x")
    with store.begin() as writer:
        writer.write(DATA[:600])
        assert store.clean_incoming() == 1
        assert len(incoming(store)) == 1


def test_a_reader_reads_on_after_a_removal(store: BlobStore) -> None:
    put(store)
    store.release(NAME)
    assert store.count_and_bytes() == (1, len(DATA))
    stream = store.read(NAME, offset=0, chunk_bytes=1000)
    first = next(stream)
    assert store.remove_unused(NAME, unused)
    assert first + b"".join(stream) == DATA
    assert store.count_and_bytes() == (0, 0)
    with pytest.raises(BlobMissing):
        read(store)


@pytest.mark.parametrize("offset", [0, 1, 999, 1000, len(DATA) - 1, len(DATA)])
@pytest.mark.parametrize("chunk_bytes", [1, 1000, MIB])
def test_ranges(store: BlobStore, offset: int, chunk_bytes: int) -> None:
    put(store)
    chunks = list(store.read(NAME, offset=offset, chunk_bytes=chunk_bytes))
    assert b"".join(chunks) == DATA[offset:]
    assert all(0 < len(chunk) <= chunk_bytes for chunk in chunks)


@pytest.mark.parametrize("offset", [-1, len(DATA) + 1])
def test_an_offset_outside_of_the_blob(store: BlobStore, offset: int) -> None:
    put(store)
    with pytest.raises(ValueError, match="outside of blob"):
        read(store, offset=offset)


def test_damaged_bytes_never_arrive_whole(store: BlobStore) -> None:
    put(store)
    store.path_of(NAME).write_bytes(DATA[:100] + b"\xff" + DATA[101:])
    seen: list[bytes] = []
    with pytest.raises(BlobDamaged, match="another digest"):
        seen.extend(store.read(NAME, offset=0, chunk_bytes=1000))
    assert sum(map(len, seen)) < len(DATA)


def test_an_empty_file_is_damaged(store: BlobStore) -> None:
    put(store)
    store.path_of(NAME).write_bytes(b"")
    with pytest.raises(BlobDamaged, match="empty"):
        read(store)


def test_a_blob_of_another_size_is_damaged(store: BlobStore) -> None:
    put(store)
    with store.path_of(NAME).open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(BlobDamaged, match=f"1000 bytes instead of {len(DATA)}"):
        next(store.read(NAME, offset=500, storage_size=len(DATA)))


def test_a_blob_cut_while_it_is_read_is_damaged(store: BlobStore) -> None:
    put(store)
    stream = store.read(NAME, offset=1, chunk_bytes=100)
    next(stream)
    with store.path_of(NAME).open("r+b") as file:
        file.truncate(150)
    with pytest.raises(BlobDamaged, match="early"):
        list(stream)


def test_a_read_given_up_closes_its_file(store: BlobStore) -> None:
    put(store)
    before = open_files()
    stream = iter(store.read(NAME, offset=0, chunk_bytes=10))
    next(stream)
    del stream
    store.read(NAME, offset=0)
    assert open_files() == before


@pytest.mark.parametrize("name", ["", "../../etc/passwd", NAME.upper(), NAME[:-1], NAME + "0", NAME + "\n"])
def test_a_name_that_is_no_digest(store: BlobStore, name: str) -> None:
    for ask in (
        store.path_of,
        store.exists,
        store.size,
        store.open,
        lambda name: store.remove_unused(name, unused),
    ):
        with pytest.raises(ValueError, match="64 lower-case hex digits"):
            ask(name)
    with pytest.raises(ValueError, match="64 lower-case hex digits"):
        next(store.read(name, offset=0))


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_no_link_is_followed(store: BlobStore, tmp_path: Path, depth: int) -> None:
    elsewhere = BlobStore(tmp_path / "elsewhere")
    put(elsewhere)
    link = store.root.joinpath(*(NAME[:2], NAME[2:4], NAME)[: depth + 1])
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(elsewhere.root / link.relative_to(store.root))
    with pytest.raises(BlobDamaged, match="a link"):
        read(store)
    assert store.count_and_bytes() == (0, 0)
    assert store.digests() == []
    assert read(elsewhere) == DATA


def test_a_fifo_in_a_blob_s_place_is_damage_and_no_wait(store: BlobStore) -> None:
    path = store.path_of(NAME)
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    before = open_files()
    with pytest.raises(BlobDamaged, match="regular"):
        store.size(NAME)
    assert open_files() == before


def test_the_root_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "blobs").symlink_to(tmp_path / "disk")
    store = BlobStore(tmp_path / "blobs")
    put(store)
    assert read(store) == DATA
    assert BlobStore(tmp_path / "disk").count_and_bytes() == (1, len(DATA))


def test_a_root_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BlobStoreFailed, match="cannot make the blob store"):
        BlobStore(tmp_path / "file" / "blobs")
