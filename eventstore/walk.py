"""Row after row of a log: what each must have in common with its bytes, and with the rows before it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol, TypeAlias

from eventstore import merkle
from eventstore.errors import EnvelopeTooNew, EventMalformed
from eventstore.event import Event, Position, decode
from eventstore.finding import COLUMN, EDIT, INSERTION, REORDER, TRUNCATION, Finding

# The last versions of so many streams are remembered; those of others are looked up.
STREAMS_MAX: Final = 50_000

# The columns that repeat what the bytes say.
REPEATED: Final = ("stream", "version", "type", "at", "operation_id", "resource_id")

# A stretch of rows that have the bytes of others, to the end of the log: a few of them may be a mere swap.
SWAPPED_MAX: Final = 2

# What may stand for one node of the tree: the hash stored there, and where that is damaged, the one that
# should be. So damage is told once, and not again at every node above it.
_Candidates: TypeAlias = tuple[bytes, ...]


class Row(NamedTuple):
    """A row of table `event`, of which only the position is believed to be a number."""

    position: int
    stream: object
    version: object
    type: object
    at: object
    operation_id: object
    resource_id: object
    body: object
    hashes: object


class Rows(Protocol):
    """The rest of the log, where a row alone does not tell."""

    def leaf_stored_at(self, position: int) -> bytes | None: ...

    def has_version_before(self, stream: str, version: int, position: int) -> bool: ...


class _Displaced(NamedTuple):
    """A stretch of rows, each of which has the bytes of the position `by` lower."""

    first: int
    last: int
    by: int
    follows_another: bool


class Walk:
    """Give it rows in order of position, then `finish`. Its memory does not grow with them."""

    def __init__(self, rows: Rows) -> None:
        self.last = 0
        self._rows = rows
        self._last_at = 0
        # By level: the newest subtree by its index, and what may stand for its hash.
        self._newest: dict[int, tuple[int, _Candidates]] = {}
        self._versions: dict[str, int] = {}
        self._displaced: _Displaced | None = None
        # Behind something that is missing, versions have a gap, too, which is no second finding.
        self._is_whole = True

    def skip(self, until: int) -> None:
        """Go on behind rows that cannot be read."""
        self.last = until
        self._is_whole = False

    def missing(self, *, until: int) -> Iterator[Finding]:
        """Go on behind the positions up to `until`, at which there is no row."""
        if self.last < until:
            where = f"positions {self.last + 1} to {until} are" if self.last + 1 < until else "it is"
            yield Finding(TRUNCATION, self.last + 1, f"{where} missing, and the log goes on behind")
            self.skip(until)

    def take(self, row: Row) -> Iterator[Finding]:
        """What is wrong with the next row, and with the positions between it and the one before."""
        leaf_fault = _leaf_fault(row)
        event, fault = _decoded(row, is_hashed=leaf_fault is None)
        if event is not None and event.position == self.last + 1 < row.position:
            # Its place in the table is damaged, and not what is there.
            message = f"it stands under position {row.position}, its bytes say {event.position}"
            yield Finding(COLUMN, event.position, message)
            row = row._replace(position=event.position)
        if row.position <= self.last:
            yield Finding(REORDER, row.position, f"its row stands behind that of position {self.last}")
            return
        yield from self.missing(until=row.position - 1)
        self.last = row.position
        if event is not None and self._is_displaced(row, event, leaf_fault):
            yield from self._displace(row.position, event.position)
            return
        yield from self._end_displaced(is_end=False)
        fault = leaf_fault or (fault and f"its bytes are no event: {fault}")
        node_fault = self._node_fault(row)
        if fault or node_fault:
            yield Finding(EDIT, row.position, fault or node_fault or "")
        if fault or event is None:
            self._is_whole = False
            return
        yield from self._column_findings(row, event)
        yield from self._order_findings(event)

    def finish(self, *, until: int) -> Iterator[Finding]:
        """What only the end of the log shows, which is at a position."""
        yield from self.missing(until=until)
        yield from self._end_displaced(is_end=True)

    def _is_displaced(self, row: Row, event: Event, leaf_fault: str | None) -> bool:
        """Whether these are the whole bytes of another position, with their hash or without."""
        if event.position == row.position:
            return False
        if leaf_fault is None:
            return True
        there = self._rows.leaf_stored_at(event.position)
        return type(row.body) is bytes and there == merkle.leaf_hash(row.body)

    def _displace(self, position: int, said: int) -> Iterator[Finding]:
        self._is_whole = False
        self._newest.clear()
        by, before = position - said, self._displaced
        if before is not None and before.by == by and before.last == position - 1:
            self._displaced = before._replace(last=position)
            return
        yield from self._end_displaced(is_end=False)
        self._displaced = _Displaced(position, position, by, follows_another=before is not None)

    def _end_displaced(self, *, is_end: bool) -> Iterator[Finding]:
        """Rows that changed places; or more or fewer of them, where the log never returns to its order."""
        found, self._displaced = self._displaced, None
        if found is None:
            return
        first, last, by, follows_another = found
        rows = f"the rows {first} to {last} have" if last > first else "its row has"
        said = f"{rows} the bytes of position {first - by}{' and on' if last > first else ''}"
        if not is_end or (follows_another and last - first < SWAPPED_MAX):
            yield Finding(REORDER, first, said)
        elif by > 0:
            yield Finding(INSERTION, first - by, f"{by} more than was written: {said}")
        else:
            yield Finding(TRUNCATION, first, f"{-by} fewer than were written: {said}")

    def _node_fault(self, row: Row) -> str | None:
        """What is wrong with the hashes of a row above its leaf: each is made of the two below it."""
        levels, fault = merkle.levels_of(Position(row.position)), None
        size = len(row.hashes) if type(row.hashes) is bytes else 0
        if size != levels * merkle.HASH_SIZE_BYTES:
            fault = f"{size} bytes of hashes stand there instead of {levels * merkle.HASH_SIZE_BYTES}"
        nodes: list[_Candidates] = []
        for level in range(levels):
            made = self._made(row, nodes)
            stored = _stored_node(row, level)
            if stored is not None and (stored in made or not made):
                nodes.append((stored,))
                continue
            # What was made comes first: so the first of all is made of bytes, whatever is stored on the way.
            nodes.append(tuple(node for node in (*made[:1], stored) if node is not None))
            if level > 0 and fault is None:
                fault = f"the hash of the {1 << level} events that end there is not that of the two below it"
        for level, node in enumerate(nodes):
            self._newest[level] = (row.position >> level) - 1, node
        return fault

    def _made(self, row: Row, below: list[_Candidates]) -> _Candidates:
        """What the next node of a row must be: of its bytes or of the two below it, if those are known."""
        level = len(below)
        if level == 0:
            return (merkle.leaf_hash(row.body),) if type(row.body) is bytes else ()
        index, left = self._newest.get(level - 1, (-1, ()))
        if index != (row.position >> (level - 1)) - 2:
            return ()
        return tuple(merkle.node_hash(one, other) for one in left for other in below[-1])

    def _column_findings(self, row: Row, event: Event) -> Iterator[Finding]:
        for name in REPEATED:
            stored, said = getattr(row, name), getattr(event, name)
            if stored != said or type(stored) is not type(said):
                message = f"it stands under {name} {stored!r}, its bytes say {said!r}"
                yield Finding(COLUMN, row.position, message)

    def _order_findings(self, event: Event) -> Iterator[Finding]:
        if event.at < self._last_at:
            message = f"its stamp {event.at} is before {self._last_at}, that of the event before"
            yield Finding(REORDER, event.position, message)
        self._last_at = event.at
        stream, version = event.stream, event.version
        last = self._versions.get(stream)
        if len(self._versions) >= STREAMS_MAX:
            self._versions.clear()
        self._versions[stream] = version
        if last is None:
            is_next = version == 1 or self._rows.has_version_before(stream, version - 1, event.position)
        else:
            is_next = version == last + 1
        if is_next:
            return
        behind = f"version {version} of {stream} stands behind version {last or 'none'}"
        if last is not None and version <= last:
            yield Finding(INSERTION, event.position, behind)
        elif self._is_whole:
            yield Finding(TRUNCATION, event.position, behind)


def _leaf_fault(row: Row) -> str | None:
    if type(row.body) is not bytes:
        return f"its bytes are stored as {type(row.body).__name__}"
    if _stored_node(row, 0) != merkle.leaf_hash(row.body):
        return "the bytes do not have the leaf hash stored beside them"
    return None


def _decoded(row: Row, *, is_hashed: bool) -> tuple[Event | None, str | None]:
    """The event of stored bytes, or why they are none. Raises EnvelopeTooNew, if the bytes are as written."""
    if type(row.body) is not bytes:
        return None, None
    try:
        return decode(row.body), None
    except EventMalformed as error:
        return None, error.reason
    except EnvelopeTooNew as error:
        if is_hashed:
            raise EnvelopeTooNew(row.position, error.found, error.supported) from error
        return None, str(error)


def _stored_node(row: Row, level: int) -> bytes | None:
    """A hash of a row, None where it ends before."""
    if type(row.hashes) is not bytes:
        return None
    node = row.hashes[level * merkle.HASH_SIZE_BYTES : (level + 1) * merkle.HASH_SIZE_BYTES]
    return node if len(node) == merkle.HASH_SIZE_BYTES else None
