from __future__ import annotations

import shutil
import sqlite3
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from eventstore.checkpoint import sign
from eventstore.errors import (
    CheckpointContradicted,
    EntryTooLarge,
    ForeignCheckpoint,
    LogCorrupt,
    NoSuchPosition,
    TilesRefused,
)
from eventstore.event import Position, encode
from eventstore.heads import checkpoint_at
from eventstore.keys import generate_key
from eventstore.log import EventLog, new_log_id
from eventstore.merkle import TreeSize
from eventstore.reader import LogReader
from eventstore.tiles import Tile, Written, write_tiles
from tests.unit.eventstore.conftest import LOG_ID, build_event
from tests.unit.eventstore.traced import index_of, needs_strace, system_calls

SIGNER = generate_key(LOG_ID, bytes(range(32)))

# What two bytes can count.
ENTRY_MAX = 65_535

# As in the example of https://c2sp.org/tlog-tiles.
LARGE = 70_000


def fill(path: Path, *sizes: int, log_id: str = LOG_ID) -> None:
    """Makes a log, or lets one grow, in batches up to these sizes."""
    with EventLog.open(path) as log:
        log.create_if_empty(log_id=log_id, at=1)
        for size in sizes:
            head = log.head()
            events = [build_event(position, at=10 * size) for position in range(head + 1, size + 1)]
            log.append(events, expected_head=head)


@pytest.fixture(scope="module")
def large_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "log.db"
    fill(path, LARGE)
    return path


@pytest.fixture(scope="module")
def large(large_path: Path) -> Iterator[LogReader]:
    with LogReader.open(large_path) as log:
        yield log


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "tiles"


def write(log: LogReader, folder: Path, size: int) -> Written:
    note = sign(checkpoint_at(log, TreeSize(size)), SIGNER)
    return write_tiles(log, folder, size=TreeSize(size), note=note)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Reading:
    """What a folder of tiles says, read with nothing but the specification of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        origin, size, root, *_ = (folder / "checkpoint").read_text().split("\n")
        self.origin, self.size, self.root = origin, int(size), root

    def path(self, kind: str, number: int, count: int) -> Path:
        """Of the tile or bundle `number` among `count` entries of its level."""
        groups = [f"{number % 1000:03d}"]
        rest = number // 1000
        while rest:
            groups.insert(0, f"x{rest % 1000:03d}")
            rest //= 1000
        name = "/".join(groups)
        if count < 256 * (number + 1):
            name += f".p/{count % 256}"
        return self.folder / "tile" / kind / name

    def entries(self) -> list[bytes]:
        found = []
        for number in range((self.size + 255) // 256):
            bundle = self.path("entries", number, self.size).read_bytes()
            at = 0
            while at < len(bundle):
                (length,) = struct.unpack_from(">H", bundle, at)
                found.append(bundle[at + 2 : at + 2 + length])
                at += 2 + length
            assert at == len(bundle)
        return found

    def level(self, level: int) -> list[bytes]:
        count = self.size >> (8 * level)
        found = []
        for number in range((count + 255) // 256):
            tile = self.path(str(level), number, count).read_bytes()
            found += [tile[at : at + 32] for at in range(0, len(tile), 32)]
        assert len(found) == count
        return found


def mth(hashes: list[bytes]) -> bytes:
    """The root over some leaf hashes, from the definition of RFC 6962 §2.1."""
    if len(hashes) == 1:
        return hashes[0]
    split = 1 << ((len(hashes) - 1).bit_length() - 1)
    return sha256(b"\x01" + mth(hashes[:split]) + mth(hashes[split:])).digest()


def check_tiles(folder: Path, log: LogReader, size: int) -> None:
    """Fails unless the folder holds the log's first `size` events and a tree over them."""
    reading = Reading(folder)
    assert (reading.origin, reading.size) == (log.log_id, size)
    entries = reading.entries()
    assert entries == [log.body(Position(position)) for position in range(1, size + 1)]
    leaves = [sha256(b"\x00" + entry).digest() for entry in entries]
    assert checkpoint_at(log, TreeSize(size)).root == mth(leaves)
    level = 0
    while size >> (8 * level):
        assert reading.level(level) == [
            mth(leaves[at << (8 * level) : (at + 1) << (8 * level)]) for at in range(size >> (8 * level))
        ]
        level += 1


@pytest.mark.parametrize("size", [1, 2, 3, 255, 256, 257, 511, 512, 600, 1024])
def test_what_is_written_is_what_the_specification_reads(large: LogReader, folder: Path, size: int) -> None:
    write(large, folder, size)
    check_tiles(folder, large, size)


@pytest.fixture(scope="module")
def large_folder(large: LogReader, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiles") / "deep" / "er"
    assert write(large, folder, LARGE) == Written(files=2 * 274 + 2 + 1 + 1, tiles_kept=0)
    return folder


def test_the_example_of_the_specification(large: LogReader, large_folder: Path) -> None:
    """70,000 entries: which files there are, and no others."""
    expected = {"checkpoint", "tile/1/000", "tile/1/001.p/17", "tile/2/000.p/1"}
    for kind in ("0", "entries"):
        expected |= {f"tile/{kind}/{number:03d}" for number in range(273)} | {f"tile/{kind}/273.p/112"}
    assert set(files_of(large_folder)) == expected
    check_tiles(large_folder, large, LARGE)


def test_256_events_have_a_full_tile_and_one_above_it(large: LogReader, folder: Path) -> None:
    write(large, folder, 256)
    assert set(files_of(folder)) == {"checkpoint", "tile/0/000", "tile/1/000.p/1", "tile/entries/000"}


@pytest.mark.parametrize(
    ("index", "width", "path"),
    [
        (0, 256, "tile/3/000"),
        (999, 255, "tile/3/999.p/255"),
        (1000, 256, "tile/3/x001/000"),
        (1234067, 256, "tile/3/x001/x234/067"),
        (1234067, 8, "tile/3/x001/x234/067.p/8"),
    ],
)
def test_a_path_holds_the_index_in_groups_of_three_digits(index: int, width: int, path: str) -> None:
    assert Tile(3, index, width).path == path
    assert Tile(0, index, width).entries_path == path.replace("/3/", "/entries/")


class TestASecondTime:
    def test_it_writes_what_came_since(self, large: LogReader, folder: Path, large_folder: Path) -> None:
        write(large, folder, 300)
        first = files_of(folder)
        before = {name: (folder / name).stat().st_ino for name in first}
        write(large, folder, 70_000)
        assert {name for name in first if (folder / name).stat().st_ino != before[name]} == {"checkpoint"}
        rest = {name: content for name, content in files_of(folder).items() if name not in first}
        expected = files_of(large_folder)
        assert rest == {name: content for name, content in expected.items() if name not in first}
        check_tiles(folder, large, LARGE)

    def test_full_tiles_are_kept(self, large: LogReader, folder: Path) -> None:
        write(large, folder, 600)
        assert write(large, folder, 700) == Written(files=2 + 1 + 1, tiles_kept=2)
        check_tiles(folder, large, 700)

    def test_the_tiles_of_older_checkpoints_stay(self, large: LogReader, folder: Path) -> None:
        write(large, folder, 300)
        write(large, folder, 600)
        assert (folder / "tile/0/001.p/44").stat().st_size == 44 * 32

    @pytest.mark.parametrize("name", ["tile/0/001", "tile/entries/001", "tile/1/000"])
    @pytest.mark.parametrize("damage", ["removed", "emptied", "cut"])
    def test_what_is_not_whole_is_written_again(
        self, large: LogReader, folder: Path, large_folder: Path, name: str, damage: str
    ) -> None:
        shutil.copytree(large_folder, folder)
        whole = (folder / name).read_bytes()
        if damage == "removed":
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(whole[:-1] if damage == "cut" and "entries" not in name else b"")
        write(large, folder, LARGE)
        assert (folder / name).read_bytes() == whole

    def test_what_no_checkpoint_vouches_for_is_written_again(self, large: LogReader, folder: Path) -> None:
        """A first export that was killed leaves tiles, and nothing says of which log they are."""
        write(large, folder, 600)
        (folder / "checkpoint").unlink()
        (folder / "tile/0/001").write_bytes(bytes(8192))
        write(large, folder, 700)
        check_tiles(folder, large, 700)

    def test_what_is_above_the_checkpoint_is_written_again(self, large: LogReader, folder: Path) -> None:
        """A second export that was killed leaves tiles above the checkpoint of the first."""
        write(large, folder, 300)
        older = (folder / "checkpoint").read_bytes()
        write(large, folder, 600)
        (folder / "checkpoint").write_bytes(older)
        (folder / "tile/0/001").write_bytes(bytes(8192))
        write(large, folder, 600)
        check_tiles(folder, large, 600)

    def test_a_folder_that_is_ahead_is_refused(self, large: LogReader, folder: Path) -> None:
        write(large, folder, 300)
        before = files_of(folder)
        with pytest.raises(TilesRefused, match="of 300 events, which is more than 299"):
            write(large, folder, 299)
        assert files_of(folder) == before

    def test_a_folder_of_another_log_is_refused(self, large: LogReader, folder: Path, tmp_path: Path) -> None:
        fill(tmp_path / "log.db", 5, log_id=new_log_id(bytes(16)))
        with LogReader.open(tmp_path / "log.db") as other:
            write(other, folder, 5)
        before = files_of(folder)
        with pytest.raises(TilesRefused, match="not one of this log"):
            write(large, folder, 300)
        assert files_of(folder) == before

    def test_a_folder_of_a_log_that_was_rewritten_is_refused(
        self, large: LogReader, folder: Path, tmp_path: Path
    ) -> None:
        fill(tmp_path / "log.db", 3, 5)
        with LogReader.open(tmp_path / "log.db") as rewritten:
            write(rewritten, folder, 5)
        with pytest.raises(TilesRefused, match="have the root"):
            write(large, folder, 300)

    @pytest.mark.parametrize("content", [b"", b"\xff", b"words\n"])
    def test_a_checkpoint_that_is_none_is_refused(
        self, large: LogReader, folder: Path, content: bytes
    ) -> None:
        folder.mkdir()
        (folder / "checkpoint").write_bytes(content)
        with pytest.raises(TilesRefused):
            write(large, folder, 5)


class TestRefusals:
    def test_a_note_of_another_size(self, large: LogReader, folder: Path) -> None:
        note = sign(checkpoint_at(large, TreeSize(5)), SIGNER)
        with pytest.raises(ValueError, match="of 5 events, the tiles are to be of 6"):
            write_tiles(large, folder, size=TreeSize(6), note=note)

    def test_a_note_that_is_not_of_this_log(self, large: LogReader, folder: Path) -> None:
        checkpoint = checkpoint_at(large, TreeSize(5))
        for wrong, error in (
            (replace(checkpoint, origin="another-log"), ForeignCheckpoint),
            (replace(checkpoint, root=bytes(32)), CheckpointContradicted),
            (replace(checkpoint, size=TreeSize(LARGE + 1)), NoSuchPosition),
        ):
            with pytest.raises(error):
                write_tiles(large, folder, size=wrong.size, note=sign(wrong, SIGNER))
        assert not folder.exists()

    def test_an_event_that_no_bundle_has_room_for(self, log: EventLog, folder: Path) -> None:
        room = ENTRY_MAX - len_of_body("")
        log.append([build_event(2, data={"text": "x" * (room - 2)})], expected_head=Position(1))
        write(log, folder, 2)
        assert len(log.body(Position(2))) == ENTRY_MAX
        assert len(Reading(folder).entries()[1]) == ENTRY_MAX
        before = (folder / "checkpoint").read_bytes()
        log.append([build_event(3, data={"text": "x" * (room - 1)})], expected_head=Position(2))
        with pytest.raises(EntryTooLarge) as refused:
            write(log, folder, 3)
        assert refused.value.position == 3
        assert refused.value.size_bytes == ENTRY_MAX + 1
        assert (folder / "checkpoint").read_bytes() == before


def len_of_body(text: str) -> int:
    return len(encode(build_event(2, data={"text": text})))


@pytest.fixture
def damaged(large_path: Path, path: Path) -> Iterator[Callable[[int, int], LogReader]]:
    """A copy of the large log with a bit of the node of a level flipped, in the row of a position."""
    opened: list[LogReader] = []

    def flip(position: int, level: int) -> LogReader:
        shutil.copy(large_path, path)
        connection = sqlite3.connect(path)
        (hashes,) = connection.execute("SELECT hashes FROM event WHERE position = ?", [position]).fetchone()
        changed = bytearray(hashes)
        changed[32 * level] ^= 1
        connection.execute("DROP TRIGGER event_update")
        connection.execute("UPDATE event SET hashes = ? WHERE position = ?", [bytes(changed), position])
        connection.commit()
        connection.close()
        opened.append(LogReader.open(path))
        return opened[0]

    yield flip
    for log in opened:
        log.close()


@pytest.mark.parametrize(
    ("position", "level"),
    [
        pytest.param(512, 8, id="above-a-full-tile"),
        pytest.param(65_536, 16, id="in-a-partial-tile-of-level-2"),
        pytest.param(65_536 + 256, 8, id="in-a-partial-tile-of-level-1"),
        pytest.param(65_536, 8, id="in-a-full-tile-of-level-1"),
    ],
)
def test_a_damaged_hash_is_never_published(
    large: LogReader,
    large_folder: Path,
    folder: Path,
    damaged: Callable[[int, int], LogReader],
    position: int,
    level: int,
) -> None:
    """Neither the first time, nor when the tiles below it are there already."""
    note = (large_folder / "checkpoint").read_text()
    log = damaged(position, level)
    with pytest.raises((LogCorrupt, CheckpointContradicted)) as corrupt:
        write_tiles(log, folder, size=TreeSize(LARGE), note=note)
    assert not (folder / "checkpoint").exists()
    if isinstance(corrupt.value, LogCorrupt):
        assert corrupt.value.position == position


def test_a_damaged_hash_above_tiles_that_are_kept_is_never_published(
    large: LogReader, folder: Path, damaged: Callable[[int, int], LogReader]
) -> None:
    write(large, folder, 65_536 + 512)
    before = (folder / "checkpoint").read_bytes()
    note = sign(checkpoint_at(large, TreeSize(LARGE)), SIGNER)
    with pytest.raises(LogCorrupt) as corrupt:
        write_tiles(damaged(65_536 + 256, 8), folder, size=TreeSize(LARGE), note=note)
    assert corrupt.value.position == 65_536 + 256
    assert (folder / "checkpoint").read_bytes() == before


def test_a_damaged_event_is_never_published(
    large: LogReader, folder: Path, damaged: Callable[[int, int], LogReader]
) -> None:
    note = sign(checkpoint_at(large, TreeSize(600)), SIGNER)
    with pytest.raises(LogCorrupt) as corrupt:
        write_tiles(damaged(77, 0), folder, size=TreeSize(600), note=note)
    assert corrupt.value.position == 77
    assert not (folder / "checkpoint").exists()


@needs_strace
def test_every_tile_is_durable_before_the_checkpoint_has_its_name(
    large: LogReader, large_path: Path, folder: Path, tmp_path: Path
) -> None:
    note = tmp_path / "note"
    note.write_text(sign(checkpoint_at(large, TreeSize(300)), SIGNER))
    code = """
import pathlib, sys
from eventstore.reader import LogReader
from eventstore.tiles import write_tiles
log, folder, note = map(pathlib.Path, sys.argv[1:])
write_tiles(LogReader.open(log), folder, size=300, note=note.read_text())
"""
    calls = system_calls(code, large_path, folder, note, output=tmp_path / "calls")
    published = index_of(calls, "rename", f'"{folder}/checkpoint"')
    for name in ("tile/0/000", "tile/0/001.p/44", "tile/1/000.p/1", "tile/entries/000"):
        parent, file = (folder / name).parent, (folder / name).name
        synced = index_of(calls, "fsync(", f"<{parent}/.{file}.partial>")
        named = index_of(calls, "rename", f'"{folder / name}"')
        folder_synced = index_of(calls, "fsync(", f"<{parent}>")
        assert synced < named < folder_synced < published
    for above in (folder / "tile/0", folder / "tile", folder, folder.parent):
        assert index_of(calls, "fsync(", f"<{above}>") < published
    assert index_of(calls, "fsync(", f"<{folder}/.checkpoint.partial>") < published
    assert any(call.startswith("fsync(") and f"<{folder}>" in call for call in calls[published:])
