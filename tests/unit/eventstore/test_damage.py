"""A flipped bit anywhere in log.db: the same answers as before, or an error of the room."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from eventstore.errors import EventStoreError
from eventstore.event import Position
from eventstore.log import EventLog
from eventstore.reader import LogReader

FLIPS = 150

Question = Callable[[LogReader], object]

# One event is one event: these have no other answer.
EXACT: dict[str, Question] = {
    "log_id": lambda log: log.log_id,
    **{f"event {p}": (lambda log, p=p: log.event(Position(p))) for p in (1, 6, 10)},
    **{f"body {p}": (lambda log, p=p: log.body(Position(p))) for p in (1, 6, 10)},
    **{f"leaf {p}": (lambda log, p=p: log.leaf(Position(p))) for p in (1, 6, 10)},
    **{f"at {p}": (lambda log, p=p: log.at(Position(p))) for p in (1, 6, 10)},
    # The nodes above the leaf are made of other rows: the writer checks them, when it opens the log.
    "hashes 8": lambda log: log.hashes(Position(8))[:32],
    "hashes 9": lambda log: log.hashes(Position(9)),
}

# A tree of the file that lost its last entries, or an index that lost some, cannot be told from a smaller
# one: what it leaves out is found by a walk through all events, and by a checkpoint kept elsewhere.
LISTS: dict[str, Question] = {
    "events": lambda log: list(log.events()),
    "events until": lambda log: list(log.events(until=10)),
    "operation": lambda log: log.events_of_operation("op5"),
    "resource": lambda log: log.events_of_resource("r1"),
    "stream": lambda log: log.events_of_stream("s", after=3, until=9),
}
NUMBERS: dict[str, Question] = {
    "head": lambda log: log.head(),
    "position_at": lambda log: log.position_at(55),
    "version": lambda log: log.stream_version("s"),
}


def is_part(found: Sequence[object], whole: Sequence[object]) -> bool:
    """Whether one list is another with entries left out."""
    rest = iter(whole)
    return all(event in rest for event in found)


def answers(path: Path) -> dict[str, object]:
    """The answer to every question that has one. Raises EventStoreError for a log that does not open."""
    found: dict[str, object] = {}
    with LogReader.open(path) as log:
        for name, ask in (EXACT | LISTS | NUMBERS).items():
            try:
                found[name] = ask(log)
            except EventStoreError:
                continue
    return found


@pytest.fixture
def stored(log_of_ten: EventLog, path: Path) -> bytes:
    log_of_ten.close()
    return path.read_bytes()


def test_a_flipped_bit_changes_no_answer(stored: bytes, tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    # Most of a small file is empty.
    bytes_used = [index for index, byte in enumerate(stored) if byte]
    path = tmp_path / "damaged" / "log.db"
    path.parent.mkdir()
    path.write_bytes(stored)
    right = answers(path)
    assert right.keys() == (EXACT | LISTS | NUMBERS).keys()
    for _ in range(FLIPS):
        index, bit = chance.choice(bytes_used), chance.randrange(8)
        changed = bytearray(stored)
        changed[index] ^= 1 << bit
        path.write_bytes(changed)
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        try:
            found = answers(path)
        except EventStoreError:
            continue
        for name, answer in found.items():
            where = f"{name} after bit {bit} of byte {index}: {answer}"
            if isinstance(answer, list):
                assert is_part(answer, right[name]), where  # type: ignore[arg-type]
            elif name in NUMBERS:
                assert answer <= right[name], where  # type: ignore[operator]
            else:
                assert answer == right[name], where


@pytest.mark.parametrize(
    "text", [b"CREATE TABLE event", b"event_by_stream", b"position INTEGER", b"word 7", b"hashes BLOB"]
)
@pytest.mark.parametrize("opener", [EventLog.open, LogReader.open])
def test_text_that_is_no_text_is_damage(
    stored: bytes, path: Path, text: bytes, opener: Callable[[Path], LogReader]
) -> None:
    """SQLite quotes the file in its error texts, and the driver decodes them."""
    for index in range(stored.index(text), stored.index(text) + len(text)):
        changed = bytearray(stored)
        changed[index] ^= 0x80
        path.write_bytes(changed)
        try:
            with opener(path) as log:
                log.head()
                list(log.events())
                log.hashes(Position(8))
        except EventStoreError:
            pass
