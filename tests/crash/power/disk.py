"""A disk as the calls of a program left it, and the states in which a power cut may leave it.

What POSIX promises and no more: fsync of a file keeps its data and its size, fsync of a folder keeps its
names; a rename inside one folder happens or does not; everything else reaches the disk in any order, in
part, or not at all. One more promise is taken from the disk, as SQLite takes it: a write changes no byte
beside its own ("powersafe overwrite").
"""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

SECTOR_BYTES = 512
# So many lines of the record may lie between a power cut and what an ordered disk had reached.
LAG_LINES_MAX = 500

# Which of the changes that no fsync covers survive: nothing; everything; on all files and folders what was
# done up to one moment; of each the first ones; of each some; the first ones and a part of the next; parts
# of some; no data, but the sizes that it gave to files; or of each file and folder another one of these.
Survivors: TypeAlias = Literal[
    "none", "all", "ordered", "prefix", "subset", "torn", "shreds", "sizes", "mixed"
]
NAMES_SURVIVE: tuple[Survivors, ...] = ("none", "all", "ordered", "prefix", "subset", "mixed")
DATA_SURVIVE: tuple[Survivors, ...] = (*NAMES_SURVIVE, "torn", "shreds", "sizes")

# What becomes of one change.
Fate: TypeAlias = Literal["lost", "kept", "torn", "sized"]


class Entry(NamedTuple):
    """A file's bytes, None for a folder; and the mode with which it was made, as part of its creation."""

    content: bytes | None
    mode: int


# Path below the disk's root → what is there.
State: TypeAlias = dict[str, Entry]


@dataclass(frozen=True, slots=True)
class Span:
    """When something happened: lines of the record, see Call."""

    begun: int
    ended: int


@dataclass(frozen=True, slots=True)
class Write:
    span: Span
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Resize:
    span: Span
    size: int


@dataclass(frozen=True, slots=True)
class Naming:
    """Names of one folder and what they stand for from now on, None for nothing; all of them or none."""

    span: Span
    entries: tuple[tuple[str, File | Folder | None], ...]


@dataclass(slots=True, eq=False)
class File:
    """Its changes follow each other: none begins before the one before it has ended."""

    mode: int = 0o644
    changes: list[Write | Resize] = field(default_factory=list)
    syncs: list[Span] = field(default_factory=list)
    size: int = 0
    # The bytes after so many of the changes, kept because states are asked for in the order of their moments.
    _known: tuple[int, bytearray] = field(default_factory=lambda: (0, bytearray()))

    def write(self, span: Span, offset: int, data: bytes) -> None:
        self._add(Write(span, offset, data))
        self.size = max(self.size, offset + len(data))

    def resize(self, span: Span, size: int) -> None:
        self._add(Resize(span, size))
        self.size = size

    def _add(self, change: Write | Resize) -> None:
        if self.changes and change.span.begun <= self.changes[-1].span.ended:
            raise AssertionError("two threads wrote one file at once: its bytes have no one order")
        self.changes.append(change)

    def divided(self, moment: int) -> tuple[int, int]:
        """How many of its changes are durable at a moment, and how many have begun."""
        synced = synced_until(self.syncs, moment)
        durable = bisect_left(self.changes, synced, key=lambda change: change.span.ended)
        return durable, bisect_right(self.changes, moment, key=lambda change: change.span.begun)

    def at(self, count: int) -> bytearray:
        """The bytes after the first `count` changes."""
        known, content = self._known
        if known > count:
            known, content = 0, bytearray()
        for change in self.changes[known:count]:
            apply(content, change)
        self._known = count, content
        return bytearray(content)


@dataclass(slots=True, eq=False)
class Folder:
    mode: int = 0o755
    changes: list[Naming] = field(default_factory=list)
    syncs: list[Span] = field(default_factory=list)
    entries: dict[str, File | Folder] = field(default_factory=dict)

    def name(self, span: Span, *entries: tuple[str, File | Folder | None]) -> None:
        self.changes.append(Naming(span, entries))
        name_all(self.entries, entries)


@dataclass(frozen=True, slots=True)
class Cut:
    """One power cut: when (a line of the record, whose call has begun and not ended), and what survives."""

    moment: int
    names: Survivors
    data: Survivors
    seed: int


def synced_until(syncs: list[Span], moment: int) -> int:
    """What ended before this line is durable at a moment, since an fsync that began then has ended."""
    return max((sync.begun for sync in syncs if sync.ended < moment), default=0)


def apply(content: bytearray, change: Write | Resize) -> None:
    if isinstance(change, Write):
        grow(content, change.offset)
        content[change.offset : change.offset + len(change.data)] = change.data
    else:
        del content[change.size :]
        grow(content, change.size)


def grow(content: bytearray, size: int) -> None:
    if len(content) < size:
        content.extend(bytes(size - len(content)))


def name_all(entries: dict[str, File | Folder], changes: Iterable[tuple[str, File | Folder | None]]) -> None:
    for name, node in changes:
        if node is None:
            entries.pop(name, None)
        else:
            entries[name] = node


def live(root: Folder) -> State:
    """What programs see: the state without a power cut, without files `*-shm`."""
    return dict(_live(root, ""))


def _live(folder: Folder, prefix: str) -> Iterator[tuple[str, Entry]]:
    for name, node in folder.entries.items():
        if isinstance(node, Folder):
            yield prefix + name, Entry(None, node.mode)
            yield from _live(node, f"{prefix}{name}/")
        elif not name.endswith("-shm"):
            yield prefix + name, Entry(bytes(node.at(len(node.changes))), node.mode)


def after(root: Folder, cut: Cut) -> State:
    """The state that a power cut leaves; the same cut leaves the same state.

    A file `*-shm` is never there: SQLite writes it through memory, and nothing ever syncs it.
    """
    state: State = {}
    _Remains(cut).add(root, "", state)
    return state


class _Remains:
    """One state in the making; walks the folders as they survive, in the order of their names."""

    def __init__(self, cut: Cut) -> None:
        self._cut = cut
        self._choices = random.Random(cut.seed)
        self._reached = cut.moment - self._choices.randrange(LAG_LINES_MAX)

    def add(self, folder: Folder, prefix: str, state: State) -> None:
        for name, node in sorted(self._names(folder).items()):
            path = prefix + name
            if isinstance(node, Folder):
                state[path] = Entry(None, node.mode)
                self.add(node, f"{path}/", state)
            elif not name.endswith("-shm"):
                state[path] = Entry(self._content(node), node.mode)

    def _names(self, folder: Folder) -> dict[str, File | Folder]:
        moment = self._cut.moment
        begun = [change for change in folder.changes if change.span.begun <= moment]
        synced = synced_until(folder.syncs, moment)
        pending = [change for change in begun if change.span.ended >= synced]
        lost = {
            change.span
            for change, fate in zip(
                pending, self._fates(self._cut.names, NAMES_SURVIVE, pending), strict=True
            )
            if fate == "lost"
        }
        entries: dict[str, File | Folder] = {}
        for change in begun:
            if change.span not in lost:
                name_all(entries, change.entries)
        return entries

    def _content(self, file: File) -> bytes:
        durable, begun = file.divided(self._cut.moment)
        content = file.at(durable)
        pending = file.changes[durable:begun]
        fates = self._fates(self._cut.data, DATA_SURVIVE, pending)
        for change, fate in zip(pending, fates, strict=True):
            if fate == "kept":
                apply(content, change)
            elif fate == "torn" and isinstance(change, Write):
                self._tear(content, change)
            elif fate == "sized" and isinstance(change, Write):
                grow(content, change.offset + len(change.data))
        return bytes(content)

    def _fates(
        self,
        survivors: Survivors,
        choices: tuple[Survivors, ...],
        pending: list[Naming] | list[Write | Resize],
    ) -> list[Fate]:
        """What becomes of the changes that no fsync covers, in the order in which they were made."""
        count = len(pending)
        if survivors == "mixed":
            survivors = self._choices.choice([one for one in choices if one != "mixed"])
        match survivors:
            case "none":
                return ["lost"] * count
            case "all":
                return ["kept"] * count
            case "sizes":
                return ["sized"] * count
            case "ordered":
                return ["kept" if change.span.ended < self._reached else "lost" for change in pending]
            case "prefix" | "torn":
                length = self._choices.randint(0, count)
                fates: list[Fate] = ["kept"] * length
                fates += ["torn" if survivors == "torn" else "lost"]
                fates += ["lost"] * count
                return fates[:count]
            case "subset" | "shreds":
                share = self._choices.random()
                fate: Fate = "torn" if survivors == "shreds" else "kept"
                return [fate if self._choices.random() < share else "lost" for _ in pending]
            case "mixed":
                raise AssertionError("a mixture is made of the others")

    def _tear(self, content: bytearray, write: Write) -> None:
        """Some sectors of a write; the file may have its whole size all the same."""
        at, end = write.offset, write.offset + len(write.data)
        if self._choices.random() < 0.5:
            grow(content, end)
        share = self._choices.random()
        while at < end:
            until = min(end, at - at % SECTOR_BYTES + SECTOR_BYTES)
            if self._choices.random() < share:
                grow(content, at)
                content[at:until] = write.data[at - write.offset : until - write.offset]
            at = until
