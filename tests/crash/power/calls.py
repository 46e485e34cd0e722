"""The system calls in what `strace` wrote, in the order in which they began and ended."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tests.crash.power.disk import Span

# All that may change a file, a folder, or what a descriptor stands for. One that is not interpreted is an
# error of the recording where it touches the recorded folder.
TRACED = (
    "open,openat,openat2,creat,close,close_range,dup,dup2,dup3,fcntl,lseek,"
    "write,writev,pwrite64,pwritev,pwritev2,ftruncate,truncate,fallocate,copy_file_range,sendfile,splice,"
    "read,readv,fsync,fdatasync,sync,syncfs,rename,renameat,renameat2,link,linkat,symlink,symlinkat,"
    "chmod,fchmod,fchmodat,unlink,unlinkat,mkdir,mkdirat,rmdir,mknod,mknodat,mmap,fork,vfork,clone,clone3,io_uring_setup"
)
# Of these only the result counts: what they read would fill the record.
RAW = "read,readv"
# Longer than any single write here: a text that strace cut short would be an unknown write.
STRING_BYTES_MAX = 4 * 1024 * 1024

_LINE = re.compile(r"(\d+) +(\d+)\.(\d{6}) (.*)", re.DOTALL)
_BEGINS = re.compile(r"([a-z0-9_]+)\((.*)", re.DOTALL)
_RESUMES = re.compile(r"<\.\.\. ([a-z0-9_]+) resumed>(.*)", re.DOTALL)
_RESULT = re.compile(r"\) += (0x[0-9a-f]+|-?\d+|\?)(.*)$", re.DOTALL)
_ESCAPED = re.compile(r"(?:\\x[0-9a-f]{2})*")
_UNFINISHED = " <unfinished ...>"


class CallUnknown(Exception):
    """The record holds something that this recorder cannot interpret, so it proves nothing."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call. `begun` and `ended` count lines of the record: of two calls that do not overlap, the one with
    the smaller `ended` was over before the other one was let into the kernel.

    `at_ns` is the clock when it had not begun yet. `process` shares its descriptors with all its threads.
    `result` is None for a call that the process did not survive.
    """

    process: int
    begun: int
    ended: int
    at_ns: int
    name: str
    arguments: str
    result: int | None
    result_path: str | None


def read_calls(path: Path, *, first: int) -> list[Call]:
    """The calls of a record in the order in which they ended; its lines count from `first`."""
    unfinished: dict[int, tuple[int, int, str, str]] = {}
    calls: list[Call] = []
    number = first
    for number, (thread, at_ns, text) in enumerate(_lines(path), first):
        if text.startswith(("+++", "---")):
            continue
        if resumed := _RESUMES.fullmatch(text):
            begun, began_ns, name, arguments = unfinished.pop(thread)
            if name != resumed[1]:
                raise CallUnknown(f"{resumed[1]} is resumed, {name} had begun")
            calls.append(_call(thread, Span(begun, number), began_ns, name, arguments + resumed[2]))
            continue
        if (begins := _BEGINS.fullmatch(text)) is None:
            raise CallUnknown(text[:200])
        name, rest = begins.groups()
        if rest.endswith(_UNFINISHED):
            unfinished[thread] = number, at_ns, name, rest.removesuffix(_UNFINISHED)
        else:
            calls.append(_call(thread, Span(number, number), at_ns, name, rest))
    for thread, (begun, at_ns, name, arguments) in unfinished.items():
        calls.append(Call(thread, begun, number + 1, at_ns, name, arguments, None, None))
    processes = _processes(calls)
    return [replace(call, process=processes.get(call.process, call.process)) for call in calls]


def _processes(calls: list[Call]) -> dict[int, int]:
    """The process of each thread that is none itself; its first lines may come before those of its birth."""
    processes: dict[int, int] = {}
    for call in calls:
        if call.name in ("clone", "clone3") and "CLONE_THREAD" in call.arguments and call.result:
            processes[call.result] = processes.get(call.process, call.process)
    return processes


def _lines(path: Path) -> Iterator[tuple[int, int, str]]:
    with path.open(encoding="ascii") as file:
        for line in file:
            if (found := _LINE.fullmatch(line.rstrip("\n"))) is None:
                raise CallUnknown(line[:200])
            thread, seconds, microseconds, text = found.groups()
            yield int(thread), int(seconds) * 1_000_000_000 + int(microseconds) * 1000, text


def _call(thread: int, span: Span, at_ns: int, name: str, rest: str) -> Call:
    # From the end: what stands before the result may be megabytes.
    at = rest.rfind(") ")
    found = _RESULT.match(rest, at)
    if at < 0 or found is None:
        raise CallUnknown(f"{name}({rest[:200]}")
    number, tail = found.groups()
    result = None if number == "?" else int(number, 0)
    path = unescaped(tail[1 : tail.index(">")]).decode() if tail.startswith("<") else None
    return Call(thread, span.begun, span.ended, at_ns, name, rest[:at], result, path)


def split(arguments: str) -> list[str]:
    """The arguments of a call without structures: strings and paths are hex, so no comma stands in them."""
    return arguments.split(", ")


def unescaped(text: str) -> bytes:
    """The bytes of hex escapes. Raises CallUnknown for other text."""
    if _ESCAPED.fullmatch(text) is None:
        raise CallUnknown(f"{text[:80]} is not all hex")
    return bytes.fromhex(text.replace("\\x", ""))


def string(argument: str) -> bytes:
    """The bytes of a quoted string. Raises CallUnknown for one that strace cut short."""
    if not (argument.startswith('"') and argument.endswith('"')):
        raise CallUnknown(f"{argument[:80]} is no whole string")
    return unescaped(argument[1:-1])


def descriptor(argument: str) -> tuple[int, str]:
    """The number of a descriptor, and what strace says it stands for; -1 for the current folder."""
    number, _, rest = argument.partition("<")
    path = unescaped(rest[: rest.index(">")]).decode(errors="replace") if rest else ""
    return -1 if number == "AT_FDCWD" else int(number, 0), path
