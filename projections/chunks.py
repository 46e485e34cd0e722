"""The ready answers of a folder once more, as neighbours: a plain list is read as a few dozen whole chunks.

A chunk holds the frames of up to CHUNK_IMAGES_MAX current images whose ids follow one another, and belongs to
all ids from its `first` on up to that of the next chunk; a folder's lowest one begins with the empty id. A
thousand images are some forty rows and as many CRCs; a row an image would cost ten times as much to read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import groupby, pairwise
from typing import NamedTuple
from zlib import crc32

from eventstore.database import Connection

from .rows import Row, RowDamaged

# A chunk that grows beyond the greater bounds is cut into ones of the smaller. A change writes its whole
# chunk again, and a list reads one row for each: these sizes keep both at some microseconds.
CHUNK_IMAGES_MAX = 32
CHUNK_BYTES_MAX = 16 * 1024
CUT_IMAGES = 24
CUT_BYTES = 12 * 1024
END_BYTES = 4

COLUMNS = "folder_id, first, ids, ends, wires, crc"
# From the chunk to which an id belongs.
FROM = f"""
SELECT {COLUMNS}
FROM listing
WHERE folder_id = :folder_id AND first >= coalesce(
  (SELECT max(first) FROM listing WHERE folder_id = :folder_id AND first <= :after), '')
ORDER BY first
"""
KEY = "SELECT max(first) FROM listing WHERE folder_id = ? AND first <= ?"
ONE = f"SELECT {COLUMNS} FROM listing WHERE folder_id = ? AND first = ?"
WRITE = f"INSERT OR REPLACE INTO listing ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)"
DELETE = "DELETE FROM listing WHERE folder_id = ? AND first = ?"
STORED = "SELECT since, wire FROM image WHERE id = ? ORDER BY since DESC LIMIT 1"

Element = tuple[str, bytes]  # An image's id and its frame.


class Chunk:
    """Some images by id, a line each; `ends` are where each one's frame ends in `wires`.

    A list takes most of its chunks whole, so neither ids nor ends are taken apart before someone asks.
    """

    __slots__ = ("count", "ends", "first", "ids", "wires")

    def __init__(self, first: str, ids: str, ends: bytes, wires: bytes) -> None:
        self.first = first
        self.ids = ids
        self.ends = ends
        self.wires = wires
        self.count = len(ends) // END_BYTES

    @property
    def lowest_id(self) -> str:
        return self.ids.partition("\n")[0]

    @property
    def highest_id(self) -> str:
        return self.ids.rpartition("\n")[2]

    def elements(self) -> Iterator[Element]:
        ends = struct.unpack(f"<{self.count}I", self.ends)
        for image_id, (start, end) in zip(self.ids.split("\n"), pairwise((0, *ends)), strict=True):
            yield image_id, self.wires[start:end]


class Page(NamedTuple):
    """The frames of a page, one after the other; its last id, and whether more images follow."""

    wires: bytes
    last_id: str
    has_more: bool


def page(connection: Connection, folder_id: str, *, after: str, limit: int, bytes_max: int) -> Page:
    """The first images behind `after`, up to `limit` of them and `bytes_max` bytes, but one at least.

    Raises RowDamaged.
    """
    parts: list[bytes] = []
    count, size, last_id = 0, 0, after
    with closing(connection.execute(FROM, {"folder_id": folder_id, "after": after})) as rows:
        for chunk in _opened(connection, rows, folder_id):
            is_whole = count + chunk.count <= limit and size + len(chunk.wires) <= bytes_max
            if is_whole and chunk.lowest_id > last_id:
                parts.append(chunk.wires)
                count += chunk.count
                size += len(chunk.wires)
                last_id = chunk.highest_id
                continue
            for image_id, wire in chunk.elements():
                if image_id <= last_id:
                    continue
                if count == limit or (count and size + len(wire) > bytes_max):
                    return Page(b"".join(parts), last_id, True)
                parts.append(wire)
                count += 1
                size += len(wire)
                last_id = image_id
    return Page(b"".join(parts), last_id, False)


def change(connection: Connection, folder_id: str, changes: Mapping[str, bytes | None]) -> None:
    """Write the frames of some images of a folder, None for those that are gone, inside a transaction.

    A chunk that is damaged stays so, and with it the lists that read it, until a rebuild: what it held is not
    known here, and a write must not fail of it.
    """

    def key(image_id: str) -> str:
        found = connection.execute(KEY, (folder_id, image_id)).fetchone()[0]
        return found if isinstance(found, str) else ""

    for first, ids in groupby(sorted(changes), key):
        row = connection.execute(ONE, (folder_id, first)).fetchone()
        try:
            elements = {} if row is None else dict(_chunk(row).elements())
        except RowDamaged:
            continue
        elements |= {image_id: changes[image_id] or b"" for image_id in ids}
        kept = [element for element in sorted(elements.items()) if element[1]]
        if not kept:
            connection.execute(DELETE, (folder_id, first))
        elif len(kept) > CHUNK_IMAGES_MAX or sum(len(wire) for _, wire in kept) > CHUNK_BYTES_MAX:
            connection.executemany(WRITE, cut(folder_id, kept, first=first))
        else:
            connection.execute(WRITE, chunk_row(folder_id, first, kept))


def cut(folder_id: str, elements: Iterable[Element], *, first: str = "") -> Iterator[Row]:
    """The rows of chunks that hold these elements, which are in order; the lowest begins with `first`."""
    held: list[Element] = []
    size = 0
    for element in elements:
        if held and (len(held) == CUT_IMAGES or size + len(element[1]) > CUT_BYTES):
            yield chunk_row(folder_id, first, held)
            held, size, first = [], 0, element[0]
        held.append(element)
        size += len(element[1])
    if held:
        yield chunk_row(folder_id, first, held)


def chunk_row(folder_id: str, first: str, elements: Sequence[Element]) -> Row:
    """A row of `listing`, sealed."""
    ids = "\n".join(image_id for image_id, _ in elements)
    ends, end = [], 0
    for _, wire in elements:
        end += len(wire)
        ends.append(end)
    columns = (folder_id, first, ids, struct.pack(f"<{len(ends)}I", *ends))
    wires = b"".join(wire for _, wire in elements)
    return (*columns, wires, _crc(*columns, wires))


def check(connection: Connection, row: Row) -> int:
    """The number of images in a chunk, each of which is what `image` has of it. Raises RowDamaged."""
    chunk = _whole(connection, row)
    for image_id, wire in chunk.elements():
        since, stored = connection.execute(STORED, (image_id,)).fetchone() or (0, None)
        if stored != wire:
            raise RowDamaged(table="listing", position=since)
    return chunk.count


def _opened(connection: Connection, rows: Iterable[Row], folder_id: str) -> Iterator[Chunk]:
    """Chunks that are whole, of this folder, and in order: an index's word is not enough."""
    last_id = None
    for row in rows:
        chunk = _whole(connection, row)
        is_next = last_id is None or last_id < chunk.first
        if row[0] != folder_id or not is_next or chunk.lowest_id < chunk.first:
            raise RowDamaged(table="listing", position=_position(connection, row))
        last_id = chunk.highest_id
        yield chunk


def _whole(connection: Connection, row: Row) -> Chunk:
    """The chunk in a row; where it is damaged, the error names the position of an image in it."""
    try:
        return _chunk(row)
    except RowDamaged:
        raise RowDamaged(table="listing", position=_position(connection, row)) from None


def _chunk(row: Row) -> Chunk:
    folder_id, first, ids, ends, wires, crc = row
    types = (type(folder_id), type(first), type(ids), type(ends), type(wires))
    if types != (str, str, str, bytes, bytes) or _crc(folder_id, first, ids, ends, wires) != crc:
        raise RowDamaged(table="listing", position=0)
    return Chunk(first, ids, ends, wires)


def _position(connection: Connection, row: Row) -> int:
    """The position of the first image in a damaged chunk of which `image` has other bytes, 0 if none has."""
    ids, ends, wires = row[2:5]
    if not (isinstance(ids, str) and isinstance(ends, bytes) and isinstance(wires, bytes)):
        return 0
    start, newest = 0, 0
    for image_id, (end,) in zip(
        ids.split("\n"), struct.iter_unpack("<I", ends[: len(ends) & ~3]), strict=False
    ):
        since, stored = connection.execute(STORED, (image_id,)).fetchone() or (0, None)
        if stored != wires[start:end]:
            return int(since) or newest
        start, newest = end, int(since)
    return newest


def _crc(folder_id: str, first: str, ids: str, ends: bytes, wires: bytes) -> int:
    return crc32(wires, crc32(ends, crc32(f"{folder_id}\0{first}\0{ids}".encode())))
