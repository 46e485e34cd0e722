"""The disk on which `test_power.py` rests: what a cut may leave, no less and no more, and a record that is
refused rather than misread."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.crash.power.calls import CallUnknown, read_calls
from tests.crash.power.disk import DATA_SURVIVE, NAMES_SURVIVE, Cut, File, Folder, Span, State, after, live
from tests.crash.power.replay import Replay

CUTS = 600
THE_END = 99


def at(line: int, ended: int | None = None) -> Span:
    return Span(line, line if ended is None else ended)


def new_file(root: Folder, name: str = "f") -> File:
    """A file whose name is made at line 1."""
    file = File()
    root.name(at(1), (name, file))
    return file


def synced_file(root: Folder, name: str = "f", data: bytes = b"") -> File:
    """A file that is durable, name and bytes, by line 4."""
    file = new_file(root, name)
    file.write(at(2), 0, data)
    file.syncs.append(at(3))
    root.syncs.append(at(4))
    return file


def a_file_is_synced_and_its_name_is_not(root: Folder) -> None:
    file = new_file(root)
    file.write(at(2), 0, b"a")
    file.syncs.append(at(3))


def a_name_is_synced_and_its_file_is_not(root: Folder) -> None:
    new_file(root).write(at(2), 0, b"a")
    root.syncs.append(at(3))


def both_are_synced(root: Folder) -> None:
    synced_file(root, data=b"a")


def two_writes(root: Folder) -> None:
    file = synced_file(root)
    file.write(at(5), 0, b"a")
    file.write(at(6), 1, b"b")


def a_write_of_two_sectors(root: Folder) -> None:
    synced_file(root).write(at(5), 0, b"a" * 512 + b"b" * 512)


def a_truncation(root: Folder) -> None:
    synced_file(root, data=b"ab").resize(at(5), 1)


def a_sync_that_began_before_the_write_ended(root: Folder) -> None:
    file = synced_file(root)
    file.write(at(5, 8), 0, b"a")
    file.syncs.append(at(6, 9))


def a_rename(root: Folder) -> None:
    file = synced_file(root, data=b"a")
    root.name(at(5), ("f", None), ("g", file))


def a_rename_between_folders(root: Folder) -> None:
    one, other = Folder(), Folder()
    root.name(at(1), ("1", one))
    root.name(at(2), ("2", other))
    root.syncs.append(at(3))
    file = synced_file(one, data=b"a")
    other.name(at(5), ("f", file))
    one.name(at(5), ("f", None))


def a_rename_between_folders_then_a_sync_of_the_new_one(root: Folder) -> None:
    a_rename_between_folders(root)
    target = root.entries["2"]
    target.syncs.append(at(6))


def a_removal_and_a_new_file_of_the_name(root: Folder) -> None:
    synced_file(root, data=b"a")
    root.name(at(5), ("f", None))
    again = File()
    root.name(at(6), ("f", again))
    again.write(at(7), 0, b"b")
    again.syncs.append(at(8))


def a_folder_without_its_name(root: Folder) -> None:
    folder = Folder()
    root.name(at(1), ("d", folder))
    synced_file(folder, data=b"a")


def shared_memory(root: Folder) -> None:
    synced_file(root, "log.db-shm", b"a")


@pytest.mark.parametrize(
    ("history", "moment", "states"),
    [
        pytest.param(a_file_is_synced_and_its_name_is_not, THE_END, [{}, {"f": b"a"}]),
        pytest.param(a_name_is_synced_and_its_file_is_not, THE_END, [{"f": b""}, {"f": b"\0"}, {"f": b"a"}]),
        pytest.param(both_are_synced, THE_END, [{"f": b"a"}]),
        # The last fsync has begun, and promises nothing before it has ended.
        pytest.param(both_are_synced, 4, [{}, {"f": b"a"}]),
        pytest.param(both_are_synced, 1, [{}, {"f": b""}]),
        pytest.param(two_writes, 5, [{"f": b""}, {"f": b"\0"}, {"f": b"a"}]),
        pytest.param(
            two_writes,
            THE_END,
            [{"f": data} for data in (b"", b"\0", b"a", b"\0\0", b"\0b", b"a\0", b"ab")],
        ),
        pytest.param(
            a_write_of_two_sectors,
            THE_END,
            [
                {"f": first + second}
                for first in (bytes(512), b"a" * 512)
                for second in (b"", bytes(512), b"b" * 512)
                if (first[0], second) != (0, b"")
            ]
            + [{"f": b""}],
        ),
        pytest.param(a_truncation, THE_END, [{"f": b"a"}, {"f": b"ab"}]),
        pytest.param(
            a_sync_that_began_before_the_write_ended, THE_END, [{"f": b""}, {"f": b"\0"}, {"f": b"a"}]
        ),
        pytest.param(a_rename, THE_END, [{"f": b"a"}, {"g": b"a"}]),
        pytest.param(
            a_rename_between_folders,
            THE_END,
            [
                {"1": None, "2": None, **old, **new}
                for old in ({}, {"1/f": b"a"})
                for new in ({}, {"2/f": b"a"})
            ],
        ),
        pytest.param(
            a_rename_between_folders_then_a_sync_of_the_new_one,
            THE_END,
            [{"1": None, "2": None, "2/f": b"a", **old} for old in ({}, {"1/f": b"a"})],
        ),
        pytest.param(a_removal_and_a_new_file_of_the_name, THE_END, [{}, {"f": b"a"}, {"f": b"b"}]),
        pytest.param(a_folder_without_its_name, THE_END, [{}, {"d": None, "d/f": b"a"}]),
        pytest.param(shared_memory, THE_END, [{}]),
    ],
)
def test_what_a_power_cut_may_leave(
    history: Callable[[Folder], None], moment: int, states: list[dict[str, bytes | None]]
) -> None:
    """Invariant: a cut leaves each of the states that POSIX allows, and no other."""
    root, choices = Folder(), random.Random(1)
    history(root)
    cuts = (
        Cut(moment, choices.choice(NAMES_SURVIVE), choices.choice(DATA_SURVIVE), seed) for seed in range(CUTS)
    )
    found = {contents(after(root, cut)) for cut in cuts}
    assert found == {tuple(sorted(state.items())) for state in states}


def contents(state: State) -> tuple[tuple[str, bytes | None], ...]:
    return tuple((path, entry.content) for path, entry in state.items())


def hexed(text: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in text.encode())


def record(folder: Path, *calls: str) -> Path:
    """strace's record of these calls: $ is the folder, 'text' a string, `path` that of a descriptor.

    A call may begin with its thread and a colon; the others are of thread 7.
    """
    path = folder / "record"
    lines = []
    for number, call in enumerate(calls):
        for quote, (left, right) in {"'": ('"', '"'), "`": ("<", ">")}.items():
            parts = call.replace("$", str(folder / "disk")).split(quote)
            call = "".join(
                f"{left}{hexed(part)}{right}" if number % 2 else part for number, part in enumerate(parts)
            )
        thread, _, text = call.rpartition(": ")
        lines.append(f"{thread or 7} 1000.{number:06} {text}\n")
    path.write_text("".join(lines))
    return path


def replayed(folder: Path, *calls: str) -> Replay:
    (folder / "disk").mkdir()
    replay = Replay(folder / "disk")
    replay.run(read_calls(record(folder, *calls), first=1))
    return replay


OPENED = "openat(AT_FDCWD`/`, '$/f', O_WRONLY|O_CREAT, 0644) = 3`$/f`"


def test_calls_are_followed(tmp_path: Path) -> None:
    """Whatever writes, by whichever descriptor and thread, also in two lines; what fails changes nothing."""
    replay = replayed(
        tmp_path,
        "mkdir('$/d', 0755) = 0",
        "openat(AT_FDCWD`/`, '$/d', O_RDONLY) = 4`$/d`",
        "openat(4`$/d`, 'f', O_WRONLY|O_CREAT, 0644) = 3`$/d/f`",
        "dup(3`$/d/f`) = 5`$/d/f`",
        "close(3`$/d/f`) = 0",
        "write(5`$/d/f`, 'abc', 3) = 2",
        "lseek(5`$/d/f`, 4, SEEK_SET) = 4",
        "write(5`$/d/f`, 'e', 1 <unfinished ...>",
        "<... write resumed>) = 1",
        "clone3({flags=CLONE_VM|CLONE_FILES|CLONE_THREAD} => {parent_tid=[8]}, 88) = 8",
        "pwritev(5`$/d/f`, [{iov_base='x', iov_len=1}, {iov_base='y', iov_len=1}], 2, 6) = 2",
        "pwrite64(9`/elsewhere`, 'z', 1, 0) = 1",
        "8: pwrite64(5`$/d/f`, 'w', 1, 3) = 1",
        "vfork() = 9",
        "9: openat(AT_FDCWD`/`, '/elsewhere', O_RDWR) = 5`/elsewhere`",
        "9: pwrite64(5`/elsewhere`, 'v', 1, 0) = 1",
        "9: close_range(3, 4294967295, 0) = 0",
        "openat(AT_FDCWD`/`, '$/h', O_RDWR|O_CREAT|O_EXCL, 0600) = 3`$/h`",
        "pwrite64(3`$/h`, 'abc', 3, 0) = 3",
        "read(0x3, 0x7f0000000000, 0x2) = 0x2",
        "write(3`$/h`, 'z', 1) = 1",
        "renameat(4`$/d`, 'f', AT_FDCWD`/`, '$/g') = 0",
        "write(5`$/g`, 'F', 1) = -1 ENOSPC (No space left on device)",
    )
    assert dict(contents(live(replay.root))) == {"d": None, "g": b"ab\0we\0xy", "h": b"abz"}


@pytest.mark.parametrize(
    ("calls", "why"),
    [
        pytest.param(["pwrite64(8`$/f`, 'a', 1, 0) = 1"], "has opened descriptor 8", id="descriptor"),
        pytest.param(["openat(AT_FDCWD`/`, '$/f', O_RDONLY) = 3`$/f`"], "has made it", id="unknown-file"),
        pytest.param(["openat(AT_FDCWD`/`, '/link', O_RDONLY) = 3`$/f`"], "disk/f", id="way-in-by-a-link"),
        pytest.param([OPENED, "write(3`$/f`, 'a'..., 2) = 2"], "no whole string", id="string-cut-short"),
        pytest.param([OPENED, "write(3`$/f`, 'a', 1 <unfinished ...>"], "ended in write", id="end-in-a-call"),
        pytest.param([OPENED, "write(3`$/f`, 'a', 1) = ?"], "ended in write", id="end-told"),
        pytest.param([OPENED, "sendfile(3`$/f`, 4`/x`, NULL, 9) = 9"], "sendfile", id="sendfile"),
        pytest.param([OPENED, "fallocate(3`$/f`, FALLOC_FL_PUNCH_HOLE, 0, 9) = 0"], "PUNCH", id="hole"),
        pytest.param(
            [OPENED, "mmap(NULL, 9, PROT_READ|PROT_WRITE, MAP_SHARED, 3`$/f`, 0) = 0x1"],
            "through memory",
            id="shared-memory",
        ),
        pytest.param(["symlink('/x', '$/l') = 0"], "symlink", id="link"),
        pytest.param(["rename('/x', '$/f') = 0"], "rename from", id="name-from-elsewhere"),
        pytest.param(["chmod('$/f', 0600) = 0"], "chmod", id="mode"),
        pytest.param(["sync() = 0"], "sync", id="sync"),
        pytest.param(["clone(stack=NULL, flags=CLONE_VM|CLONE_FILES) = 8"], "second process", id="process"),
        pytest.param(["what is this"], "what is this", id="no-call"),
    ],
)
def test_what_cannot_be_followed_is_refused(tmp_path: Path, calls: list[str], why: str) -> None:
    """Invariant: a record that may not say all is an error, and no proof of anything."""
    with pytest.raises(CallUnknown, match=why):
        replayed(tmp_path, *calls)
