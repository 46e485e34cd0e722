"""A log as static files: the tiles of C2SP tlog-tiles, which any of its clients reads. https://c2sp.org/tlog-tiles

`checkpoint` is the signed note. `tile/<L>/<N>` holds 256 hashes, those of level 8·L of the tree;
`tile/entries/<N>` the events of 256 leaves, each after its length in two bytes. The last of each may be
partial: `<N>.p/<W>` holds W of them.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from eventstore import merkle
from eventstore.checkpoint import Checkpoint, parse_checkpoint, split_note
from eventstore.database import fsync_directory
from eventstore.errors import EntryTooLarge, EventStoreError, LogCorrupt, TilesRefused
from eventstore.heads import check_log
from eventstore.merkle import HASH_SIZE_BYTES, Frontier, LeafIndex, TreeSize
from eventstore.reader import LogReader

CHECKPOINT: Final = "checkpoint"
ENTRY_SIZE_MAX_BYTES: Final = 2**16 - 1

_LEVELS: Final = 8
_WIDTH: Final = 1 << _LEVELS


@dataclass(frozen=True, slots=True)
class Written:
    """How many files a call has written, and how many full tiles it has left as they were."""

    files: int
    tiles_kept: int


@dataclass(frozen=True, slots=True)
class Tile:
    """The tile `index` of a level, of `width` hashes."""

    level: int
    index: int
    width: int

    @property
    def is_full(self) -> bool:
        return self.width == _WIDTH

    @property
    def indexes(self) -> range:
        """Those of its hashes, in their level of the tree."""
        first = self.index * _WIDTH
        return range(first, first + self.width)

    @property
    def path(self) -> str:
        """Where its hashes are."""
        return f"tile/{self.level}/{self._number}"

    @property
    def entries_path(self) -> str:
        """Where the events of its leaves are, if it is of level 0."""
        return f"tile/entries/{self._number}"

    @property
    def _number(self) -> str:
        """The index in groups of three digits, all but the last after an x; the width if it is partial."""
        text, rest = f"{self.index % 1000:03d}", self.index // 1000
        while rest:
            text, rest = f"x{rest % 1000:03d}/{text}", rest // 1000
        return text if self.is_full else f"{text}.p/{self.width}"

    @property
    def end(self) -> int:
        """The number of leaves of the smallest tree that has all of it."""
        return self.indexes.stop << (_LEVELS * self.level)


def write_tiles(log: LogReader, directory: Path, *, size: TreeSize, note: str) -> Written:
    """Writes what is missing of the tiles of the first `size` events, and then their signed note.

    Full tiles below the checkpoint that is there already are kept, so a second call writes what came since.
    Every file appears whole, and durable before the checkpoint that needs it; no tile is ever removed. It
    holds one tile in memory. Hashes are checked against those above them, up to the note's root. One call at
    a time may write into a folder.
    Raises TilesRefused, EntryTooLarge for an event over 65,535 bytes, LogCorrupt, OSError, and what check_log
    raises for a note that is not of this log.
    """
    checkpoint = parse_checkpoint(split_note(note)[0])
    if checkpoint.size != size:
        raise ValueError(f"the note is of {checkpoint.size} events, the tiles are to be of {size}")
    check_log(log, checkpoint)
    directory.mkdir(parents=True, exist_ok=True)
    old_size = _published(log, directory, checkpoint)
    files, kept = _Files(directory), 0
    edge: list[Tile] = []
    for tile in _tiles(size):
        if tile.is_full and tile.end <= old_size and _is_there(directory, tile):
            kept += 1
            continue
        if not tile.is_full:
            edge.append(tile)
        for name, content in _contents(log, tile).items():
            files.write(name, content)
    _check_edge(log, edge, checkpoint)
    files.flush()
    # Every tile is durable from here on: the checkpoint may say so.
    files.write(CHECKPOINT, note.encode())
    files.flush()
    return Written(files.written, kept)


def _published(log: LogReader, directory: Path, checkpoint: Checkpoint) -> int:
    """The size that the tiles in a folder are known to have been written for, 0 where nothing is known.

    Raises TilesRefused for a folder of another log, or one that is ahead.
    """
    try:
        note = (directory / CHECKPOINT).read_bytes()
    except FileNotFoundError:
        return 0
    try:
        there = parse_checkpoint(split_note(note.decode())[0])
        check_log(log, there)
    except (EventStoreError, UnicodeDecodeError) as error:
        raise TilesRefused(directory, f"its checkpoint is not one of this log: {error}") from error
    if there.size > checkpoint.size:
        raise TilesRefused(
            directory, f"its checkpoint is of {there.size} events, which is more than {checkpoint.size}"
        )
    return there.size


def _tiles(size: TreeSize) -> Iterator[Tile]:
    """All tiles of a tree, from the lowest level up."""
    level, count = 0, int(size)
    while count > 0:
        for index in range(count // _WIDTH):
            yield Tile(level, index, _WIDTH)
        if count % _WIDTH:
            yield Tile(level, count // _WIDTH, count % _WIDTH)
        level, count = level + 1, count // _WIDTH


def _contents(log: LogReader, tile: Tile) -> dict[str, bytes]:
    """The files of a tile: its hashes, and at level 0 the events as well.

    Raises EntryTooLarge; LogCorrupt for a full tile whose hashes are not those of the node above it.
    """
    contents = {}
    if tile.level == 0:
        bodies = [_body(log, index) for index in tile.indexes]
        contents[tile.entries_path] = b"".join(struct.pack(">H", len(body)) + body for body in bodies)
        nodes = [merkle.leaf_hash(body) for body in bodies]
    else:
        nodes = _nodes(log, tile)
    if tile.is_full:
        above = _node(log, _LEVELS * (tile.level + 1), tile.index)
        if merkle.root(_frontier(nodes)) != above:
            raise _corrupt(log, [tile])
    contents[tile.path] = b"".join(nodes)
    return contents


def _check_edge(log: LogReader, edge: Sequence[Tile], checkpoint: Checkpoint) -> None:
    """Raises LogCorrupt where the partial tiles, lowest level first, do not have the root of the checkpoint.

    Together they cover the whole tree: each has the subtrees of eight levels of its frontier.
    """
    nodes = tuple(node for tile in reversed(edge) for node in _frontier(_nodes(log, tile)).nodes)
    if merkle.root(Frontier(checkpoint.size, nodes)) != checkpoint.root:
        raise _corrupt(log, edge)


def _corrupt(log: LogReader, tiles: Sequence[Tile]) -> LogCorrupt:
    """The error that names the first row to blame for tiles that are not what lies above them."""
    for tile in tiles:
        for index in tile.indexes:
            damaged = merkle.damaged_row(merkle.node_position(_LEVELS * tile.level, index), log.hashes)
            if damaged is not None:
                return LogCorrupt(damaged, "a hash there is not that of the two below it")
    return LogCorrupt(None, "the hashes of its tree are not those of the two below them")


def _is_there(directory: Path, tile: Tile) -> bool:
    """Whether the files of a full tile are there, whole as far as their sizes tell."""
    try:
        if (directory / tile.path).stat().st_size != HASH_SIZE_BYTES * tile.width:
            return False
        return tile.level != 0 or (directory / tile.entries_path).stat().st_size > 2 * tile.width
    except FileNotFoundError:
        return False


def _nodes(log: LogReader, tile: Tile) -> list[bytes]:
    return [_node(log, _LEVELS * tile.level, index) for index in tile.indexes]


def _node(log: LogReader, level: int, index: int) -> bytes:
    return merkle.node_of(log.hashes(merkle.node_position(level, index)), level)


def _frontier(nodes: Sequence[bytes]) -> Frontier:
    """The subtrees that cover some nodes of a level."""
    return merkle.extend(merkle.EMPTY, nodes)[0]


def _body(log: LogReader, index: int) -> bytes:
    """The event of a leaf. Raises EntryTooLarge."""
    position = merkle.position_of(LeafIndex(index))
    body = log.body(position)
    if len(body) > ENTRY_SIZE_MAX_BYTES:
        raise EntryTooLarge(position, len(body), ENTRY_SIZE_MAX_BYTES)
    return body


class _Files:
    """Files below a folder that appear whole, and are durable once `flush` has returned."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._changed: set[Path] = set()
        self.written = 0

    def write(self, name: str, content: bytes) -> None:
        path = self._directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.partial")
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        self._changed.add(path.parent)
        self.written += 1

    def flush(self) -> None:
        """Makes the names durable, those of new folders up to the one above the top included."""
        top = self._directory.absolute().parent
        folders = {folder.absolute() for folder in self._changed}
        folders |= {above for folder in folders for above in folder.parents if top in (above, *above.parents)}
        for folder in folders:
            fsync_directory(folder)
        self._changed.clear()
