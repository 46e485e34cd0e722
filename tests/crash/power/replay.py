"""Follows the calls of one process, so that what they did to a folder is known change by change."""

from __future__ import annotations

import os.path
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.crash.power.calls import Call, CallUnknown, descriptor, split, string, unescaped
from tests.crash.power.disk import File, Folder, Span

# Of every recorded process.
UMASK = 0o022

_BUFFER = re.compile(r'iov_base=("[^"]*"[.]*)')


@dataclass(slots=True)
class Opened:
    """An open file description, which several descriptors may share."""

    node: File | Folder
    path: str
    flags: frozenset[str]
    offset: int = 0


class Replay:
    """A folder, and the descriptors by which processes, each with its own, work in it.

    A process that another one starts inherits none of them: all are closed when it runs its program.

    What is not understood, and would change the folder, raises CallUnknown.
    """

    def __init__(self, root: Path) -> None:
        """`root` must be empty, and the current folder no part of it."""
        self.root = Folder()
        self._prefix = str(root.resolve())
        self._opened: dict[tuple[int, int], Opened] = {}

    def run(self, calls: Iterable[Call]) -> list[Call]:
        """Apply the calls of one record, from start to end. Returns those that change what survives."""
        self._opened.clear()
        # A descriptor's number is free, and may be given out again, while its close is still under way.
        ordered = sorted(calls, key=lambda call: call.begun if call.name == "close" else call.ended)
        return [call for call in ordered if self._apply(call)]

    def _apply(self, call: Call) -> bool:
        if call.result is not None and call.result < 0:
            return False
        match call.name:
            case "open" | "openat":
                return self._open(call)
            case "close":
                self._opened.pop((call.process, descriptor(call.arguments)[0]), None)
                return False
            case "dup" | "dup2" | "dup3" | "fcntl":
                return self._duplicate(call)
            case "lseek" | "read" | "readv":
                return self._seek(call)
            case "write" | "writev" | "pwrite64" | "pwritev" | "pwritev2":
                return self._write(call)
            case "ftruncate" | "truncate" | "fallocate":
                return self._resize(call)
            case "copy_file_range":
                return self._copy(call)
            case "fsync" | "fdatasync":
                return self._sync(call)
            case "rename" | "renameat" | "renameat2" | "link" | "linkat":
                return self._rename(call)
            case "unlink" | "unlinkat" | "rmdir" | "mkdir" | "mkdirat":
                return self._make_or_remove(call)
            case "clone" | "clone3":
                return self._thread(call)
            case "close_range":
                return self._close_range(call)
            case "mmap":
                return self._map(call)
            case _:
                return self._other(call)

    def _open(self, call: Call) -> bool:
        arguments = split(call.arguments)
        (path,) = self._paths(arguments[: 2 if call.name == "openat" else 1])
        flags = frozenset(arguments[2 if call.name == "openat" else 1].split("|"))
        if path is None or call.result is None:
            return self._surely_elsewhere(path, call)
        node = self._node(path)
        is_new = node is None
        is_emptied = isinstance(node, File) and "O_TRUNC" in flags and node.size > 0
        if node is None:
            if "O_CREAT" not in flags or "O_TMPFILE" in flags:
                raise CallUnknown(f"{path} was opened, and nothing recorded has made it")
            node = File(_mode(arguments[-1]))
            folder, name = self._parent(path)
            folder.name(_span(call), (name, node))
        elif isinstance(node, File) and is_emptied:
            node.resize(_span(call), 0)
        self._opened[call.process, call.result] = Opened(node, path, flags)
        return is_new or is_emptied

    def _close_range(self, call: Call) -> bool:
        first, last, flags = split(call.arguments)
        if flags != "0":
            raise CallUnknown(f"close_range({call.arguments})")
        numbers = range(int(first), int(last.partition(" ")[0], 0) + 1)
        for process, number in list(self._opened):
            if process == call.process and number in numbers:
                del self._opened[process, number]
        return False

    def _duplicate(self, call: Call) -> bool:
        arguments = split(call.arguments)
        if call.name == "fcntl" and not arguments[1].startswith("F_DUPFD"):
            return False
        opened = self._opened.get((call.process, descriptor(arguments[0])[0]))
        if call.name in ("dup2", "dup3"):
            self._opened.pop((call.process, descriptor(arguments[1])[0]), None)
        if opened is not None and call.result is not None:
            self._opened[call.process, call.result] = opened
        return False

    def _seek(self, call: Call) -> bool:
        opened = self._opened.get((call.process, descriptor(split(call.arguments)[0])[0]))
        if opened is not None and call.result is not None:
            opened.offset = call.result + (0 if call.name == "lseek" else opened.offset)
        return False

    def _write(self, call: Call) -> bool:
        opened = self._of(call)
        if opened is None:
            return False
        file = _file(opened)
        vector = "[" in call.arguments
        buffers = _BUFFER.findall(call.arguments) if vector else [split(call.arguments)[1]]
        data = b"".join(map(string, buffers))[: _known(call)]
        if call.name.startswith("pwrite"):
            offset = int(split(call.arguments)[-2 if call.name == "pwritev2" else -1])
        elif "O_APPEND" in opened.flags:
            offset = file.size
        else:
            offset = opened.offset
            opened.offset += len(data)
        if not opened.path.endswith("-shm"):
            file.write(_span(call), offset, data)
        return True

    def _resize(self, call: Call) -> bool:
        arguments = split(call.arguments)
        if call.name == "truncate":
            (path,) = self._paths(arguments[:1])
            node = None if path is None else self._node(path)
            if path is None:
                return False
            if not isinstance(node, File):
                raise CallUnknown(f"{path} was truncated, and nothing recorded has made it")
            node.resize(_span(call), int(arguments[1]))
            return True
        opened = self._of(call)
        if opened is None:
            return False
        _known(call)
        file = _file(opened)
        if call.name == "ftruncate":
            size = int(arguments[1])
        elif arguments[1] == "0":
            size = max(file.size, int(arguments[2]) + int(arguments[3]))
        elif arguments[1] == "FALLOC_FL_KEEP_SIZE":
            size = file.size
        else:
            raise CallUnknown(f"{opened.path}: fallocate with {arguments[1]}")
        if not opened.path.endswith("-shm"):
            file.resize(_span(call), size)
        return True

    def _copy(self, call: Call) -> bool:
        arguments = split(call.arguments)
        target = self._of(call, argument=2)
        if target is None:
            return False
        source = self._opened.get((call.process, descriptor(arguments[0])[0]))
        if source is None or "NULL" in (arguments[1], arguments[3]):
            raise CallUnknown(f"{target.path}: bytes were copied into it from where nothing is recorded")
        start, into = (int(arguments[number].strip("[]")) for number in (1, 3))
        content = _file(source).at(len(_file(source).changes))
        _file(target).write(_span(call), into, bytes(content[start : start + _known(call)]))
        return True

    def _sync(self, call: Call) -> bool:
        opened = self._of(call)
        if opened is not None and call.result is not None:
            opened.node.syncs.append(_span(call))
        return opened is not None

    def _rename(self, call: Call) -> bool:
        arguments = split(call.arguments)
        count = 4 if "at" in call.name else 2
        old, new = self._paths(arguments[:count])
        if old is None and new is None:
            return False
        if old is None or new is None or (call.name == "renameat2" and arguments[4] != "0"):
            raise CallUnknown(f"{call.name} from {old} to {new}")
        _known(call)
        node = self._node(old)
        if node is None:
            raise CallUnknown(f"{old} was named {new}, and nothing recorded has made it")
        (source, old_name), (target, new_name) = self._parent(old), self._parent(new)
        if "link" in call.name:
            target.name(_span(call), (new_name, node))
        elif source is target:
            target.name(_span(call), (old_name, None), (new_name, node))
        else:
            # Of two folders, each keeps its names by itself.
            target.name(_span(call), (new_name, node))
            source.name(_span(call), (old_name, None))
        return True

    def _make_or_remove(self, call: Call) -> bool:
        arguments = split(call.arguments)
        (path,) = self._paths(arguments[: 2 if call.name.endswith("at") else 1])
        if path is None:
            return False
        _known(call)
        folder, name = self._parent(path)
        if not call.name.startswith("mkdir") and name not in folder.entries:
            raise CallUnknown(f"{path} was removed, and nothing recorded has made it")
        made = Folder(_mode(arguments[-1])) if call.name.startswith("mkdir") else None
        folder.name(_span(call), (name, made))
        return True

    def _thread(self, call: Call) -> bool:
        if "CLONE_FILES" in call.arguments and "CLONE_THREAD" not in call.arguments:
            raise CallUnknown("a second process that shares its descriptors")
        return False

    def _map(self, call: Call) -> bool:
        arguments = split(call.arguments)
        opened = None
        if "<" in arguments[4]:
            opened = self._opened.get((call.process, descriptor(arguments[4])[0]))
        if opened is None or "MAP_SHARED" not in arguments[3] or "PROT_WRITE" not in arguments[2]:
            return False
        if not opened.path.endswith("-shm"):
            raise CallUnknown(f"{opened.path} is written through memory, which no call shows")
        return False

    def _other(self, call: Call) -> bool:
        """Calls that nothing here interprets: they must have nothing to do with the folder."""
        # libuv's ring without SQPOLL carries no file operations: it is for epoll alone.
        is_ring_of_files = call.name == "io_uring_setup" and "SETUP_SQPOLL" in call.arguments
        if call.name == "sync" or is_ring_of_files:
            raise CallUnknown(f"{call.name}({call.arguments})")
        for text in re.findall(r"(?:\\x[0-9a-f]{2})+", call.arguments):
            if unescaped(text).decode(errors="replace").startswith(self._prefix):
                raise CallUnknown(f"{call.name}({call.arguments[:300]}) in the recorded folder")
        return False

    def _of(self, call: Call, *, argument: int = 0) -> Opened | None:
        """What a call on a descriptor is about; None for what lies elsewhere."""
        number, path = descriptor(split(call.arguments)[argument])
        opened = self._opened.get((call.process, number))
        if opened is None and self._is_inside(path):
            raise CallUnknown(f"{call.name} on {path}: nothing recorded has opened descriptor {number}")
        return opened

    def _paths(self, arguments: list[str]) -> list[str | None]:
        """Paths below the root, None for one elsewhere. A path may follow the descriptor of its folder."""
        paths: list[str | None] = []
        folder = ""
        for argument in arguments:
            if not argument.startswith('"'):
                folder = descriptor(argument)[1]
                continue
            path = os.path.normpath(Path(folder) / string(argument).decode())
            paths.append(path[len(self._prefix) + 1 :] if self._is_inside(path) else None)
        return paths

    def _is_inside(self, path: str) -> bool:
        return f"{path}/".startswith(f"{self._prefix}/")

    def _surely_elsewhere(self, path: str | None, call: Call) -> bool:
        """False. Raises CallUnknown where the kernel says otherwise, by a link, or says nothing."""
        if path is not None or self._is_inside(call.result_path or ""):
            raise CallUnknown(f"{call.name}({call.arguments}) = {call.result} {call.result_path}")
        return False

    def _parent(self, path: str) -> tuple[Folder, str]:
        *folders, name = path.split("/")
        folder = self.root
        for part in folders:
            child = folder.entries.get(part)
            if not isinstance(child, Folder):
                raise CallUnknown(f"{path}: nothing recorded has made folder {part}")
            folder = child
        return folder, name

    def _node(self, path: str) -> File | Folder | None:
        if not path:
            return self.root
        folder, name = self._parent(path)
        return folder.entries.get(name)


def _span(call: Call) -> Span:
    return Span(call.begun, call.ended)


def _mode(argument: str) -> int:
    return int(argument, 8) & ~UMASK


def _known(call: Call) -> int:
    """The result. Raises CallUnknown for a call that its process did not survive."""
    if call.result is None:
        raise CallUnknown(f"the process ended in {call.name}: nobody knows what it did")
    return call.result


def _file(opened: Opened) -> File:
    if not isinstance(opened.node, File):
        raise CallUnknown(f"{opened.path} is a folder, and was written")
    return opened.node
