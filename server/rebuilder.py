"""`rebuild --online`: a child process builds another projection, and the server goes over to it.

The child reads the log and the live file and writes its own; this process adds the last few events, names the
new file in CURRENT and moves everybody who reads, between two batches. Whatever is killed at whatever moment,
CURRENT names a file that is right, and the next start removes the other one.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

from grpc import StatusCode

from eventstore.event import Position
from projections.projector import Projector
from projections.store import Rebuilt
from server.detached import Detached
from server.live import LiveProjection
from server.read_only import AnyWriter
from server.rebuild_child import identity
from server.status import CallRefused
from server.writer import Switch

CHILD = (sys.executable, "-m", "server.rebuild_child")
STOP_S_MAX = 10.0

Tell = Callable[[str, int, int], None]  # Called with the stage, the position it has come to, and the head.

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Replaced:
    """What a rebuild did, the position at which the new file took over, and how long nothing was written."""

    rebuilt: Rebuilt
    position: int
    pause_s: float


@dataclass(frozen=True, slots=True)
class _Taken:
    """What the writer's thread leaves to do: to close and remove the file before, once nobody reads it."""

    position: int
    pause_s: float
    before: Projector
    path: Path
    unread: Future[None]


class Rebuilder:
    """One rebuild at a time. Used from the event loop."""

    def __init__(self, live: LiveProjection, writer: AnyWriter, *, log_path: Path) -> None:
        self._live = live
        self._writer = writer
        self._log_path = log_path
        self._work = Detached()
        self._rebuild: asyncio.Task[Replaced] | None = None
        self._removals: set[asyncio.Task[None]] = set()
        self._is_replacing = False
        self._stopping = False

    def begin(self, tell: Tell) -> asyncio.Task[Replaced]:
        """A task that ends once the new projection is live. Raises CallRefused while there is one already."""
        if self._stopping:
            raise CallRefused(StatusCode.UNAVAILABLE, "The server is stopping", reason="STOPPING")
        if self._rebuild is not None and not self._rebuild.done():
            raise CallRefused(
                StatusCode.FAILED_PRECONDITION,
                "A rebuild is under way already: wait until it has ended",
                reason="REBUILD_UNDER_WAY",
            )
        self._is_replacing = False
        self._rebuild = self._work.start(self._run(tell))
        return self._rebuild

    def give_up(self, rebuild: asyncio.Task[Replaced]) -> None:
        """End a rebuild that nobody waits for; one that is about to take over does so."""
        # Once, since it tidies up when it is cancelled.
        if rebuild is self._rebuild and not self._is_replacing and not rebuild.cancelling():
            rebuild.cancel()

    async def stop(self) -> None:
        """End what is under way. What a question still reads is left to the next start."""
        self._stopping = True
        if self._rebuild is not None:
            self.give_up(self._rebuild)
        for removal in self._removals:
            removal.cancel()
        await self._work.wait(seconds_max=STOP_S_MAX)

    async def _run(self, tell: Tell) -> Replaced:
        try:
            return await self._build_and_replace(tell)
        except OSError as error:
            why = f"The new projection cannot be written, or not take over: {error}"
            raise _refused("UNAVAILABLE", why, "PROJECTION_NOT_WRITTEN") from error

    async def _build_and_replace(self, tell: Tell) -> Replaced:
        started = time.monotonic()
        await _in_thread(self._check_room)
        path = await _in_thread(self._live.files.reserve)
        try:
            rebuilt = await self._build(path, tell)
            self._is_replacing = True
            taken, kept = await self._replace(path, rebuilt)
        except BaseException as error:
            # Who is cancelled while it takes over does not know whether it did: the next start looks.
            if not (self._is_replacing and isinstance(error, asyncio.CancelledError)):
                with suppress(OSError):
                    await _in_thread(lambda: self._forget(path))
            raise
        removal = self._work.start(self._end_of(taken, is_kept=kept is not None))
        self._removals.add(removal)
        removal.add_done_callback(self._removals.discard)
        seconds = round(time.monotonic() - started, 3)
        rebuilt = replace(rebuilt, seconds=seconds, kept=None if kept is None else str(kept))
        return Replaced(rebuilt, taken.position, taken.pause_s)

    def _check_room(self) -> None:
        """Refuse what would fill the disk: it is the log's, too. Raises CallRefused."""
        path = self._live.path
        needed = sum(entry.stat().st_size for entry in path.parent.glob(f"{path.name}*"))
        free = shutil.disk_usage(path.parent).free
        if free < needed:
            raise _refused(
                "RESOURCE_EXHAUSTED",
                f"A second projection needs {needed} bytes beside this one, and {free} are free:"
                " free some space on its disk, and try again",
                "DISK_LOW",
            )

    async def _build(self, path: Path, tell: Tell) -> Rebuilt:
        """The digests of a complete file, which is all but caught up. Raises CallRefused."""
        compared: Rebuilt | None = None
        command = (*CHILD, str(self._log_path), str(path), str(self._live.path), *identity())
        async with _child(command) as (process, lines):
            while line := await lines.get():
                said: dict[str, Any] = json.loads(line)
                if "refused" in said:
                    raise _refused(**said["refused"])
                if "compared" in said:
                    compared = Rebuilt(**said["compared"])
                else:
                    tell(said["stage"], said.get("done", 0), said.get("events", 0))
            code = await _in_thread(process.wait)
        if code != 0 or compared is None:
            raise _refused("UNAVAILABLE", f"The process that built it ended with {code}", "REBUILD_ENDED")
        return compared

    async def _replace(self, path: Path, rebuilt: Rebuilt) -> tuple[_Taken, Path | None]:
        """Go over to the file, and the path of the one before if it was not what the log says."""
        loop = asyncio.get_running_loop()
        is_wrong = rebuilt.damage is not None or rebuilt.digest_before not in (None, rebuilt.digest_after)
        kept = self._live.path if is_wrong else None
        taken: list[_Taken] = []

        def take_over(before: Projector, head: Position) -> Projector:
            began = time.monotonic()
            before_path = self._live.path
            projector, unread = self._live.move_to(path, head, keep=kept, loop=loop)
            taken.append(_Taken(head, time.monotonic() - began, before, before_path, unread))
            return projector

        await self._writer.switch(Switch(take_over))
        said = {"file": path.name, "position": taken[0].position, "pause_s": round(taken[0].pause_s, 4)}
        _log.info("the projection was rebuilt", extra=said)
        if kept is not None:
            why = rebuilt.damage or f"digest {rebuilt.digest_before}, not {rebuilt.digest_after}"
            _log.error("the projection before was wrong", extra={"reason": why, "kept": str(kept)})
        return taken[0], kept

    def _forget(self, path: Path) -> None:
        """Remove a file that did not take over; first of all, CURRENT must not name it."""
        files = self._live.files
        if files.current() == path:
            files.make_current(self._live.path)
        files.remove(path)

    async def _end_of(self, taken: _Taken, *, is_kept: bool) -> None:
        """That file alone is removed: by the time nobody reads it, the next one may be being built."""
        try:
            await asyncio.wrap_future(taken.unread)
        finally:
            # The last connection that could write: it leaves nothing in the write-ahead log.
            await _in_thread(taken.before.close)
        if not is_kept:
            await _in_thread(lambda: self._live.files.remove(taken.path))


@asynccontextmanager
async def _child(command: Sequence[str]) -> AsyncIterator[tuple[Popen[bytes], asyncio.Queue[bytes]]]:
    """A process that is gone at the end, and the lines it says; an empty one is the last.

    In a session of its own: a Ctrl-C is for its server to answer. And not started by the event loop: uvloop
    forks, and what gRPC does after a fork crashes the child now and then; Popen's vfork gives it no occasion.
    """
    loop, lines = asyncio.get_running_loop(), asyncio.Queue[bytes]()
    process = Popen(command, stdin=PIPE, stdout=PIPE, start_new_session=True)

    def pump() -> None:
        with suppress(RuntimeError):  # The loop is closed, and nobody listens.
            for line in process.stdout or ():
                loop.call_soon_threadsafe(lines.put_nowait, line)
            loop.call_soon_threadsafe(lines.put_nowait, b"")

    pumping = threading.Thread(target=pump, name="rebuild", daemon=True)
    pumping.start()
    try:
        yield process, lines
    finally:
        process.kill()
        await _in_thread(process.wait)
        await _in_thread(pumping.join)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _refused(code: str, message: str, reason: str) -> CallRefused:
    return CallRefused(StatusCode[code], message, reason=reason)


def _in_thread(work: Callable[[], Any]) -> asyncio.Future[Any]:
    return asyncio.get_running_loop().run_in_executor(None, work)
