"""A log folded by a process of its own: the same file, the same errors, and no process left."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from eventstore.reader import LogReader
from projections import bulk, folding
from projections.build import build
from projections.domain.evolve import EventUnknown
from projections.files import ProjectionFiles
from projections.opening import digest_of
from tests.bench.generate import generate
from tests.unit.projections.builders import Stand, event, image, lossless

EVENTS = 2000


@pytest.fixture(autouse=True)
def always_two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "EVENTS_MIN", 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[LogReader]:
    generate(tmp_path / "log.db", events=EVENTS)
    with LogReader.open(tmp_path / "log.db") as opened:
        yield opened


@pytest.fixture(autouse=True)
def others() -> None:
    """Children that are not ours: servers of other tests."""
    OTHERS.clear()
    OTHERS.update(processes())


OTHERS: set[int] = set()


def processes() -> set[int]:
    """Of this process: its children."""
    texts = [(task / "children").read_text() for task in Path("/proc/self/task").iterdir()]
    return {int(pid) for text in texts for pid in text.split()}


def children() -> set[int]:
    return processes() - OTHERS


def test_it_makes_the_same_file(log: LogReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ProjectionFiles(tmp_path)
    reached: list[int] = []
    other = build(files, log, encode=lossless, on_progress=lambda done, head: reached.append(done))
    assert reached[-1] == log.head()
    assert not children()
    monkeypatch.setattr("projections.build.batches", bulk.folded)
    here = build(files, log, encode=lossless)
    assert digest_of(other, encode=lossless) == digest_of(here, encode=lossless)


def test_it_is_another_process_that_folds(log: LogReader, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(log: LogReader) -> Iterator[bulk.Batch]:
        raise AssertionError("folded here")

    monkeypatch.setattr(folding, "folded", never)
    assert max(batch.position for batch in folding.batches(log)) == log.head()


def test_an_unknown_event_is_what_its_caller_knows(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with closing(Stand(tmp_path)) as stand:
        stand.say([*image("a"), event("ImageForged", "a", {})])
        files = ProjectionFiles(tmp_path)
        with pytest.raises(EventUnknown, match="position 4"):
            build(files, stand.log, encode=lossless)
    assert not list(tmp_path.glob("projections-*"))
    assert not children()
    assert capfd.readouterr().err == ""


def test_a_process_that_was_killed_is_told(log: LogReader, monkeypatch: pytest.MonkeyPatch) -> None:
    received = folding._received

    def killed(pipe: object) -> Iterator[bulk.Batch]:
        [child] = children()
        os.kill(child, signal.SIGKILL)
        yield from received(pipe)  # type: ignore[arg-type]

    monkeypatch.setattr(folding, "_received", killed)
    with pytest.raises(folding.FoldingEnded, match="-9"):
        list(folding.batches(log))
    assert not children()


def test_whoever_stops_asking_leaves_no_process(log: LogReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "ROWS_MAX", 10)
    batches = folding.batches(log)
    next(batches)
    assert children()
    batches.close()  # type: ignore[attr-defined]
    assert not children()
