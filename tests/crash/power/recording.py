"""A server, or a command, whose every call to the disk is written down."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import threading
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.conformance.sites import until
from tests.crash.power.calls import RAW, STRING_BYTES_MAX, TRACED, Call, read_calls
from tests.crash.power.disk import Entry, Folder, live
from tests.crash.power.load import Load
from tests.crash.power.planted import CHANGE
from tests.crash.power.replay import UMASK, Replay
from tests.crash.power.told import Told
from tests.harness import START_TIMEOUT_S

PROJECT = Path(__file__).parents[3]
END_TIMEOUT_S = 60
# Below the disk's root two folders that are not there yet: the server must make both of them durable.
DATA = "srv/imageledger"


@dataclass(frozen=True, slots=True)
class Moment:
    """A line of the record at which a call of this name had begun, and the clock before that."""

    line: int
    at_ns: int
    call: str


@dataclass(slots=True)
class Recording:
    """The disk's whole history: its changes, the moments between them, and what was told meanwhile."""

    root: Folder
    moments: list[Moment]
    told: list[Told]
    # The data directory when all was over, for whoever wants to know how the log went on.
    data: Path

    def told_before(self, moment: Moment) -> list[Told]:
        """What callers surely had in their hands before the call of that moment was let into the kernel."""
        return self.told[: bisect_left(self.told, moment.at_ns, key=lambda one: one.at_ns)]


@dataclass(slots=True)
class Recorder:
    """Runs one process after the other on one disk, with strace's record of each."""

    folder: Path
    # In what the recorded software differs from ours, see planted.py.
    change: str = ""
    _replay: Replay = field(init=False)
    _calls: list[Call] = field(default_factory=list)
    _told: list[Told] = field(default_factory=list)
    _runs: int = 0
    _last_line: int = 0

    def __post_init__(self) -> None:
        (self.folder / "disk").mkdir()
        (self.folder / "sources").mkdir()
        self._replay = Replay(self.folder / "disk")

    @property
    def data(self) -> Path:
        return self.folder / "disk" / DATA

    def serve(self, *work: Callable[[Load], None], load: Load, end: signal.Signals) -> None:
        """A server from its start to its end, and what is asked of it meanwhile.

        One that is killed removes no blobs: what it did with the call in which it is killed nobody knows, so
        it must be idle by then.
        """
        grace = "15m" if end is signal.SIGKILL else "0.1s"
        options = ("--listen", "127.0.0.1:0", "--blob-grace", grace, "--min-free", "0%")
        sources = ("--allow-source", f"{load.sources.as_uri()}/")
        process = self._start("serve", "--data", str(self.data), *options, *sources)
        try:
            load.address = self._address(process)
            for one in work:
                one(load)
            # The file of an import that was cancelled goes after its caller was answered.
            until(lambda: not any((self.data / "blobs" / "incoming").iterdir()))
            os.kill(self._traced(process), end)
            process.wait(END_TIMEOUT_S)
        finally:
            self._clear_away(process)
        self._told += load.told
        self._read()

    def run(self, *command: str) -> None:
        """A command on the data directory, which must succeed."""
        process = self._start(*command, "--data", str(self.data))
        try:
            assert process.wait(END_TIMEOUT_S) == 0, self._stderr()
        finally:
            self._clear_away(process)
        self._read()

    def recording(self) -> Recording:
        """All of it. Raises AssertionError where the disk is not what the record says."""
        disk = self.folder / "disk"
        recorded = live(self._replay.root)
        found = {
            str(path.relative_to(disk)): Entry(
                None if path.is_dir() else path.read_bytes(), stat.S_IMODE(path.stat().st_mode)
            )
            for path in disk.rglob("*")
            if not path.name.endswith("-shm")
        }
        assert recorded.keys() == found.keys()
        assert [path for path in found if recorded[path] != found[path]] == []
        calls = sorted(self._calls, key=lambda call: call.begun)
        moments = [Moment(call.begun, call.at_ns, call.name) for call in calls]
        told = sorted(self._told, key=lambda one: one.at_ns)
        ends_ns = max(one.at_ns for one in (*calls[-1:], *told[-1:]))
        moments.append(Moment(self._last_line + 1, ends_ns + 1, "the end"))
        return Recording(self._replay.root, moments, told, self.data)

    def _start(self, *command: str) -> subprocess.Popen[str]:
        self._runs += 1
        tracing = ["strace", "-f", "--seccomp-bpf", "-ttt", "-y", "-xx", "-s", str(STRING_BYTES_MAX)]
        tracing += ["-e", f"trace={TRACED}", "-e", f"raw={RAW}", "-e", "signal=none", "-o", str(self._record)]
        with self._stderr_path.open("wb") as stderr:
            return subprocess.Popen(
                [*tracing, sys.executable, "-m", "tests.crash.power.planted", *command],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                cwd=self.folder,
                umask=UMASK,
                env={**os.environ, "PYTHONPATH": str(PROJECT), CHANGE: self.change},
            )

    @property
    def _record(self) -> Path:
        return self.folder / f"strace-{self._runs}"

    @property
    def _stderr_path(self) -> Path:
        return self.folder / f"stderr-{self._runs}"

    def _stderr(self) -> str:
        return self._stderr_path.read_text(errors="replace")

    def _address(self, process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        killer = threading.Timer(START_TIMEOUT_S, process.kill)
        killer.start()
        line = process.stdout.readline()
        killer.cancel()
        assert line.startswith("listening on "), self._stderr()
        return line.removeprefix("listening on ").strip()

    def _traced(self, process: subprocess.Popen[str]) -> int:
        """The process that strace runs: the one that holds the directory's lock."""
        found = re.match(r"pid (\d+),", (self.data / "lock").read_text())
        assert found is not None
        assert process.poll() is None, self._stderr()
        return int(found[1])

    def _clear_away(self, process: subprocess.Popen[str]) -> None:
        """Nothing stays behind, also where a test fails: a traced process would outlive its strace."""
        if process.poll() is None:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            for child in children:
                os.kill(int(child), signal.SIGKILL)
            process.kill()
            process.wait(END_TIMEOUT_S)
        if process.stdout is not None:
            process.stdout.close()

    def _read(self) -> None:
        calls = read_calls(self._record, first=self._last_line + 1)
        self._calls += self._replay.run(calls)
        self._last_line = max(call.ended for call in calls)
        # Tens of megabytes; a record that could not be read stays to be looked at.
        self._record.unlink()
