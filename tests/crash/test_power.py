"""A server whose power is cut: nothing that it acknowledged is lost, and nothing is half there.

A serving process is recorded call by call; the states in which a power cut may leave its disk are made from
the record, and each is opened as a start of the server opens it.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.power.checker import History, lay_out
from tests.crash.power.disk import Folder
from tests.crash.power.load import Load
from tests.crash.power.planted import FAULTS, OLDER
from tests.crash.power.recording import DATA, Recorder, Recording
from tests.crash.power.search import Finding, Search

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")

STATES = int(os.environ.get("IMAGELEDGER_TEST_POWER_STATES", "1000"))
# So many states at most until a planted fault must have shown; mostly it takes a tenth of that.
PLANTED_STATES_MAX = 1000
START_CUTS = 4
# What each fault leads to. Some lead to more, and to that first in some recordings.
SIGNS = {
    "no blob fsync": r"Blob(Missing|Damaged)",
    "no folder fsync": r"BlobMissing|nothing of the log is left",
    "no fsync of blobs' folders": r"BlobMissing",
    "no fsync above the data directory": r"nothing of the log is left",
    "log at synchronous=NORMAL": r"the log ends at \d+, and \d+ later answers were given",
    "acknowledged before the commit": r"the log ends at \d+, and \d+ later answers were given",
    "CURRENT renamed without fsync": r"ProjectionRefused: CURRENT: it names",
    "projection at synchronous=OFF": r"Projection(Refused|Damaged)",
    "revocation without fsync": r"the token of None names",
    "time closed in memory alone": r"is open again",
}


@pytest.fixture
def seed() -> int:
    seed = int(os.environ.get("IMAGELEDGER_TEST_SEED", random.SystemRandom().randrange(2**32)))
    print(f"IMAGELEDGER_TEST_SEED={seed}")
    return seed


@pytest.mark.timeout(300 + STATES)
def test_no_power_cut_loses_what_was_acknowledged(tmp_path: Path, seed: int) -> None:
    """Invariant: whenever the power is cut, and whatever unsynced part of the disk survives it, a start finds
    every answer that was given before, exactly as it was given; the log is a beginning of the log as it went
    on, to the end of a batch, without gaps and with the right hashes; the projection catches up with what a
    rebuild makes of the log; every blob of a READY image or a registered source is whole; a closed time stays
    closed, a token valid and a revoked one refused.

    The record holds creation by an older version; a kill; a projection prepared for this version, which takes
    over; a rebuild under load, and one of a stopped server; a clean stop; another kill, and the recovery.
    """
    recorder = Recorder(tmp_path, OLDER)

    def load(number: int, writes: int) -> Load:
        return Load("", tmp_path / "sources", seed + number, writes, uploads=writes // 4, imports=writes // 8)

    recorder.serve(Load.run, load=load(0, 8), end=signal.SIGKILL)
    recorder.change = ""
    recorder.run("rebuild", "--prepare")
    beside = (Load.run_beside_a_rebuild, Load.close_a_time)
    recorder.serve(*beside, load=load(1, 32), end=signal.SIGTERM)
    recorder.run("rebuild")
    recorder.serve(Load.run, load=load(2, 32), end=signal.SIGKILL)
    recorder.serve(load=load(3, 0), end=signal.SIGTERM)
    recording = recorder.recording()
    check_record(recording)
    states = search(recording, seed)
    nothing_is_wrong(states, states.some(STATES), tmp_path)


def check_record(recording: Recording) -> None:
    """Otherwise this test would have tested little."""
    calls = {moment.call for moment in recording.moments}
    assert {"openat", "mkdir", "pwrite64", "write", "fsync", "ftruncate", "rename", "unlink"} <= calls
    assert len(named(recording, r"projections-\d+\.db")) >= 4
    assert len(named(recording, r"prepared-.*")) == 1
    told = {type(one).__name__ for one in recording.told}
    assert told == {"OperationTold", "SourceTold", "PositionTold", "TimeTold", "TokenTold"}


def named(recording: Recording, pattern: str) -> set[str]:
    """What was ever named so in the data directory."""
    folder = recording.root
    for part in DATA.split("/"):
        child = folder.entries[part]
        assert isinstance(child, Folder)
        folder = child
    names = {name for change in folder.changes for name, _ in change.entries}
    return {name for name in names if re.fullmatch(pattern, name)}


def search(recording: Recording, seed: int) -> Search:
    return Search(recording, History.of(recording.data / "log.db"), random.Random(seed))


def nothing_is_wrong(states: Search, findings: Iterator[Finding], folder: Path) -> None:
    """Raises AssertionError for the first wrong state, which is then found in `folder`."""
    finding = next(findings, None)
    print(f"{states.checked} distinct states of {len(states.recording.moments)} moments")
    if finding is not None:
        lay_out(finding.state, folder / "state")
        raise AssertionError(f"{finding}; the state is in {folder / 'state'}") from finding.error


def test_a_first_start_may_be_cut_anywhere(tmp_path: Path, seed: int) -> None:
    """Invariant: wherever the power is cut while a data directory is made, the next start needs no help."""
    recorder = Recorder(tmp_path)
    recorder.serve(load=Load("", tmp_path / "sources", seed, 0, 0, 0), end=signal.SIGTERM)
    states = search(recorder.recording(), seed)
    nothing_is_wrong(states, states.at_every_moment(START_CUTS), tmp_path)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(tmp_path: Path, seed: int, fault: str) -> None:
    """Invariant: the check above is able to fail. Each fault, planted in the recorded process, shows in some
    state, and as what it is."""
    recorder = Recorder(tmp_path, fault)
    load = Load("", tmp_path / "sources", seed, writes=8, uploads=4, imports=2)
    work = (Load.run, Load.close_a_time) if fault == "time closed in memory alone" else (Load.run,)
    recorder.serve(*work, load=load, end=signal.SIGTERM)
    states = search(recorder.recording(), seed)
    findings = states.some(PLANTED_STATES_MAX)
    assert any(re.search(SIGNS[fault], str(finding)) for finding in findings)
    print(f"{states.checked} distinct states")
