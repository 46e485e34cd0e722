"""Image bytes, named by their SHA-256: `root/aa/bb/<sha256>`, and `root/incoming/` for what still arrives.

Synchronous: called from worker threads, safe from several of them at once, by one writing process at a time.
Below the root no symlink is followed, so a link planted there leads nowhere. Nothing here knows images: who
may remove a blob, and when, is for the caller to say.
"""

import errno
import hashlib
import logging
import os
import re
import secrets
import shutil
import stat
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from server.formats import Inspector

logger = logging.getLogger(__name__)

CHUNK_BYTES = 262_144
FREE_CHECK_BYTES = 64 * 1024 * 1024

_SHA256 = re.compile(r"[0-9a-f]{64}")
_FOLDER = re.compile(r"[0-9a-f]{2}")
_INCOMING = "incoming"
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_WRITE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class BlobError(Exception):
    """The blob store cannot do what was asked."""


class BlobMissing(BlobError):
    """No blob of this name is here."""

    def __init__(self, sha256: str) -> None:
        super().__init__(f"blob {sha256} is not in the store; restore it from a backup or import it again")
        self.sha256 = sha256


class BlobDamaged(BlobError):
    """The file is there, but holds other bytes than its name says."""

    def __init__(self, sha256: str, what: str) -> None:
        super().__init__(f"blob {sha256} is damaged: {what}; restore it from a backup or import it again")
        self.sha256 = sha256


class BlobStoreFailed(BlobError):
    """The operating system refused; `__cause__` is its OSError."""

    remedy = "look at the blobs' disk, then try again"

    def __init__(self, doing: str, error: OSError) -> None:
        self.reason = f"{doing}: {error.strerror or error}"
        super().__init__(f"{self.reason}; {self.remedy}")
        self.errno = error.errno


class BlobStoreFull(BlobStoreFailed):
    """No room is left on the disk, or in the quota."""

    remedy = "free some space on the blobs' disk, and try again"


class DiskLow(BlobError):
    """Less of the disk is free than the operator wants kept."""

    def __init__(self, free_bytes: int, total_bytes: int, min_free: float) -> None:
        super().__init__(
            f"only {free_bytes} of {total_bytes} bytes are free on the blobs' disk, less than --min-free"
            f" {min_free:.0%}; free some space and try again"
        )


@dataclass(frozen=True, slots=True)
class Blob:
    """A durable blob; `size` is the disk's virtual size, `storage_size` the file's, both in bytes."""

    sha256: str
    format: str
    size: int
    storage_size: int


class BlobStore:
    """The folder of blobs, which it makes if need be. Raises BlobStoreFailed.

    `min_free` is the share of the disk, 0 to 1, that new blobs must leave free.
    """

    def __init__(self, root: Path, *, min_free: float = 0.0) -> None:
        self.root = root
        self._min_free = min_free
        # One placing, removal or count at a time: what a writer finds to be there stays until it returns.
        self._lock = threading.Lock()
        self._arriving: set[str] = set()
        # Names that could not be made durable: an fsync that works later says nothing of them.
        self._unsure: set[str] = set()
        # Digests that a commit has given out and whose event is not durable yet: never removed.
        self._pins: Counter[str] = Counter()
        # Apart from the other lock, so that a release never waits for a walk of the store.
        self._pins_lock = threading.Lock()
        self._totals: tuple[int, int] | None = None
        with _failures("cannot make the blob store"):
            (root / _INCOMING).mkdir(mode=0o750, parents=True, exist_ok=True)
            _sync_folder(root.parent)
            with _folder(root) as top, _folder(_INCOMING, top):
                os.fsync(top)

    def check_free(self) -> None:
        """Nothing, while enough of the disk is free. Raises DiskLow."""
        usage = shutil.disk_usage(self.root)
        if usage.free < usage.total * self._min_free:
            raise DiskLow(usage.free, usage.total, self._min_free)

    def path_of(self, sha256: str) -> Path:
        """Where the blob is, or would be. Raises ValueError if `sha256` is not 64 lower-case hex digits."""
        return self.root.joinpath(*_parts(sha256))

    def begin(self) -> "BlobWriter":
        """A writer for one new blob; use it in a `with` statement. Raises BlobStoreFailed, BlobStoreFull."""
        return BlobWriter(self)

    def open(self, sha256: str) -> BinaryIO:
        """The blob, open for reading; the caller closes it. Raises BlobMissing, BlobDamaged."""
        first, second, name = _parts(sha256)
        with _failures(f"cannot open blob {sha256}"):
            try:
                with (
                    _folder(self.root) as top,
                    _folder(first, top) as middle,
                    _folder(second, middle) as last,
                ):
                    descriptor = os.open(name, _READ_FLAGS, dir_fd=last)
            except FileNotFoundError:
                raise BlobMissing(sha256) from None
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENOTDIR):
                    raise BlobDamaged(sha256, "a link or a file stands in its place") from error
                raise
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise BlobDamaged(sha256, "it is not a regular file")
        return os.fdopen(descriptor, "rb", buffering=0)

    def exists(self, sha256: str) -> bool:
        """Whether the blob is here; its bytes are not looked at."""
        try:
            self.size(sha256)
        except BlobMissing:
            return False
        return True

    def size(self, sha256: str) -> int:
        """Bytes of the file. Raises BlobMissing, BlobDamaged."""
        with self.open(sha256) as file:
            return os.fstat(file.fileno()).st_size

    def read(
        self, sha256: str, *, offset: int, chunk_bytes: int = CHUNK_BYTES, storage_size: int | None = None
    ) -> Iterator[bytes]:
        """The blob's bytes from `offset` on, in pieces of at most `chunk_bytes`.

        `storage_size` is what the file must measure, if the caller knows. A read from 0 also checks the
        digest, and holds the last piece back until it agrees: damaged bytes never arrive whole.
        Raises, from the first `next()` on, ValueError for an offset beyond the end, BlobMissing, BlobDamaged
        and BlobStoreFailed.
        """
        with self.open(sha256) as file, _failures(f"cannot read blob {sha256}"):
            size = os.fstat(file.fileno()).st_size
            if storage_size is not None and size != storage_size:
                raise BlobDamaged(sha256, f"its file has {size} bytes instead of {storage_size}")
            if size == 0:
                raise BlobDamaged(sha256, "its file is empty")
            if not 0 <= offset <= size:
                raise ValueError(f"offset {offset} is outside of blob {sha256}, which has {size} bytes")
            if chunk_bytes < 1:
                raise ValueError(f"chunk_bytes must be positive, not {chunk_bytes}")
            file.seek(offset)
            digest = hashlib.sha256() if offset == 0 else None
            left = size - offset
            while left:
                chunk = file.read(min(chunk_bytes, left))
                if not chunk:
                    raise BlobDamaged(sha256, f"its file ends {left} bytes early")
                left -= len(chunk)
                if digest is not None:
                    digest.update(chunk)
                    if not left and digest.hexdigest() != sha256:
                        raise BlobDamaged(sha256, "its bytes have another digest")
                yield chunk

    def count_and_bytes(self) -> tuple[int, int]:
        """How many blobs there are, and their bytes. Walks the store once, then keeps count."""
        with self._lock, _failures("cannot walk the blob store"):
            if self._totals is None:
                count = total_bytes = 0
                for _, size in self._walk():
                    count += 1
                    total_bytes += size
                self._totals = count, total_bytes
            return self._totals

    def release(self, sha256: str) -> None:
        """Give back the pin that a commit left: the blob's event is durable now, or will never be."""
        with self._pins_lock:
            self._pins[sha256] -= 1
            if self._pins[sha256] <= 0:
                del self._pins[sha256]

    def remove_unused(self, sha256: str, is_used: Callable[[str], bool]) -> bool:
        """Unlink the blob unless it is pinned or used; False if it stays, or was not there.

        `is_used` is asked after the pins: whoever releases a pin has made its use visible before. Whoever
        reads the blob now reads on to its end. Not fsynced: a crash may bring it back, an orphan again.
        """
        parts = _parts(sha256)
        with self._lock, _failures(f"cannot remove blob {sha256}"):
            return sha256 not in self._pins and not is_used(sha256) and self._unlink(*parts)

    def digests(self) -> list[str]:
        """Every blob there is; files that are not named like one are not ours, and not listed."""
        with self._lock, _failures("cannot walk the blob store"):
            return [sha256 for sha256, _ in self._walk()]

    def clean_incoming(self) -> int:
        """How many files of uploads that a crash ended were removed; those that still arrive stay."""
        with (
            self._lock,
            _failures("cannot clean the blob store"),
            _folder(self.root) as top,
            _folder(_INCOMING, top) as incoming,
        ):
            with os.scandir(incoming) as entries:
                stale = [entry.name for entry in entries if entry.name not in self._arriving]
            for name in stale:
                _unlink_if_there(name, incoming)
        return len(stale)

    def _walk(self) -> Iterator[tuple[str, int]]:
        """Digest and size of every blob."""
        with _folder(self.root) as top:
            for first in _folders_in(top):
                with _folder(first, top) as middle:
                    for second in _folders_in(middle):
                        with _folder(second, middle) as last:
                            yield from _blobs_in(last, first + second)

    def _unlink(self, first: str, second: str, name: str) -> bool:
        try:
            with _folder(self.root) as top, _folder(first, top) as middle, _folder(second, middle) as last:
                size = os.stat(name, dir_fd=last, follow_symlinks=False).st_size
                os.unlink(name, dir_fd=last)
        except FileNotFoundError:
            return False
        self._count(-1, -size)
        return True

    def _count(self, blobs: int, size_bytes: int) -> None:
        if self._totals is not None:
            self._totals = self._totals[0] + blobs, self._totals[1] + size_bytes

    def _create_incoming(self) -> tuple[str, int]:
        """Name and descriptor of a new file in the incoming folder."""
        name = secrets.token_hex(16)
        self._arriving.add(name)
        try:
            with _folder(self.root) as top, _folder(_INCOMING, top) as incoming:
                return name, os.open(name, _WRITE_FLAGS, 0o640, dir_fd=incoming)
        except BaseException:
            self._arriving.discard(name)
            raise

    def _drop_incoming(self, name: str) -> None:
        try:
            with _folder(self.root) as top, _folder(_INCOMING, top) as incoming:
                self._unlink_quietly(name, incoming)
        except OSError as error:
            logger.warning("an incoming file stays until the next sweep", extra={"error": error.strerror})
        self._arriving.discard(name)

    def _place(self, name: str, descriptor: int, sha256: str, storage_size: int) -> None:
        """Make the incoming file `name` the blob `sha256`, durably, or do without it if the blob is there."""
        first, second, _ = _parts(sha256)
        whole = self._is_whole(sha256)
        if not whole:
            # Before the file has its name: after a crash, a name never stands for bytes that are not on disk.
            # Outside of the lock, because gigabytes take their time.
            os.fsync(descriptor)
        with (
            self._lock,
            _folder(self.root) as top,
            _made_folder(first, top) as middle,
            _made_folder(second, middle) as last,
        ):
            before = self._size_of(sha256)
            is_kept = before == storage_size and whole is not False and sha256 not in self._unsure
            if whole and not is_kept:
                os.fsync(descriptor)  # It was removed since we looked, or is there and not to be trusted.
            with self._sure_or_gone(sha256, last, is_new=before is None):
                if is_kept:
                    self._keep(sha256, last, middle, top)
                else:
                    self._rename(name, sha256, last, middle, top)
                    self._count(1 if before is None else 0, storage_size - (before or 0))
            with self._pins_lock:
                self._pins[sha256] += 1

    def _is_whole(self, sha256: str) -> bool | None:
        """Whether the blob holds the bytes it is named for, None if it is not there. Reads all of it.

        A new image must not rest on bytes that rotted since an older one brought them.
        """
        try:
            for _ in self.read(sha256, offset=0):
                pass
        except BlobMissing:
            return None
        except (BlobDamaged, BlobStoreFailed):
            logger.warning("a damaged blob is replaced", extra={"sha256": sha256})
            return False
        return True

    def _keep(self, sha256: str, *folders: int) -> None:
        """Make durable what is there: a crash may have come before its writer did, or a person copied it."""
        with self.open(sha256) as there:
            os.fsync(there.fileno())
        for folder in folders:
            os.fsync(folder)
        # The blob is durable from here on.

    def _rename(self, name: str, sha256: str, *folders: int) -> None:
        """Name the synced incoming file, then sync `folders`, the innermost first: any of them may be new."""
        last, _, top = folders
        with _folder(_INCOMING, top) as incoming:
            os.rename(name, sha256, src_dir_fd=incoming, dst_dir_fd=last)
        for folder in folders:
            os.fsync(folder)
        # The blob is durable from here on. Nothing refers to it yet: a crash here leaves an orphan.

    @contextmanager
    def _sure_or_gone(self, sha256: str, folder: int, *, is_new: bool) -> Iterator[None]:
        """Around what makes a blob durable: if it fails, the next try must not take the name for durable.

        The kernel reports a lost write once, so an fsync that works afterwards proves nothing. A name that
        is new goes again; one that was there before may be all that others have, and is given anew next time.
        """
        try:
            yield
        except OSError:
            self._totals = None
            self._unsure.add(sha256)
            if is_new:
                self._unlink_quietly(sha256, folder)
            raise
        self._unsure.discard(sha256)

    def _unlink_quietly(self, name: str, folder: int) -> None:
        """Not to hide the error that its caller reports."""
        try:
            _unlink_if_there(name, folder)
        except OSError as error:
            logger.warning("a file stays until the next sweep", extra={"error": error.strerror})

    def _size_of(self, sha256: str) -> int | None:
        """Bytes of the blob's file, None if none is there, or a link in its place."""
        try:
            return self.size(sha256)
        except (BlobMissing, BlobDamaged):
            return None


class BlobWriter:
    """Hashes, inspects and stores one stream in one pass; leaving its `with` uncommitted drops the file."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._hash = hashlib.sha256()
        self._inspector = Inspector()
        self._written_bytes = 0
        self._check_free_at = 0
        with _failures("cannot begin a blob"):
            self._name, self._descriptor = store._create_incoming()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    @property
    def sha256(self) -> str:
        """Digest of the bytes so far."""
        return self._hash.hexdigest()

    @property
    def written_bytes(self) -> int:
        return self._written_bytes

    def write(self, chunk: bytes) -> None:
        """Take the next bytes. Raises FormatRefused, DiskLow, BlobStoreFailed, and is done then."""
        self._check_open()
        try:
            if self._written_bytes >= self._check_free_at:
                self._store.check_free()
                self._check_free_at = self._written_bytes + FREE_CHECK_BYTES
            self._inspector.feed(chunk)
            self._hash.update(chunk)
            self._append(chunk)
        except BaseException:
            # The digest may now be ahead of the file: no commit can be right any more.
            self.abort()
            raise
        self._written_bytes += len(chunk)

    def _append(self, chunk: bytes) -> None:
        left = memoryview(chunk)
        with _failures("cannot write a blob"):
            while left:
                left = left[os.write(self._descriptor, left) :]

    def commit(self) -> Blob:
        """The blob, durable and pinned when this returns: `release` it when its event is durable.

        Raises FormatRefused, BlobStoreFull, BlobStoreFailed, with nothing pinned.
        """
        self._check_open()
        try:
            inspected = self._inspector.finish()
            with _failures("cannot store a blob"):
                self._store._place(self._name, self._descriptor, self.sha256, self._written_bytes)
        finally:
            self.abort()
        return Blob(self.sha256, inspected.format, inspected.size, inspected.storage_size)

    def abort(self) -> None:
        """Close and drop the incoming file; nothing if that was done, or if it has become the blob."""
        if self._descriptor < 0:
            return
        descriptor, self._descriptor = self._descriptor, -1
        try:
            # After fsync() close() has nothing left to report, and before it the file is dropped.
            os.close(descriptor)
        except OSError as error:
            logger.warning("closing an incoming file failed", extra={"error": error.strerror})
        self._store._drop_incoming(self._name)

    def _check_open(self) -> None:
        if self._descriptor < 0:
            raise AssertionError("the writer was committed or aborted")


@contextmanager
def _failures(doing: str) -> Iterator[None]:
    """Turn an OSError into ours."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BlobStoreFull(doing, error) from error
        raise BlobStoreFailed(doing, error) from error


def _parts(sha256: str) -> tuple[str, str, str]:
    if not _SHA256.fullmatch(sha256):
        raise ValueError(f"a blob is named by 64 lower-case hex digits, not {sha256[:80]!r}")
    return sha256[:2], sha256[2:4], sha256


@contextmanager
def _folder(name: str | Path, parent: int | None = None) -> Iterator[int]:
    """Descriptor of a folder in the folder `parent`; only a path without one may be a symlink."""
    flags = _DIRECTORY_FLAGS if parent is not None else _DIRECTORY_FLAGS & ~os.O_NOFOLLOW
    descriptor = os.open(name, flags, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _made_folder(name: str, parent: int) -> Iterator[int]:
    try:
        os.mkdir(name, 0o750, dir_fd=parent)
    except FileExistsError:
        pass
    with _folder(name, parent) as descriptor:
        yield descriptor


def _sync_folder(path: Path) -> None:
    with _folder(path) as descriptor:
        os.fsync(descriptor)


def _unlink_if_there(name: str, folder: int) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        pass


def _folders_in(folder: int) -> list[str]:
    with os.scandir(folder) as entries:
        return [
            entry.name
            for entry in entries
            if _FOLDER.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
        ]


def _blobs_in(folder: int, prefix: str) -> list[tuple[str, int]]:
    with os.scandir(folder) as entries:
        return [
            (entry.name, entry.stat(follow_symlinks=False).st_size)
            for entry in entries
            if _SHA256.fullmatch(entry.name)
            and entry.name.startswith(prefix)
            and entry.is_file(follow_symlinks=False)
        ]
