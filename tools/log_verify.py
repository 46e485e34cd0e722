"""`imageledger log verify`: all that is stored, read again and held against what was written and signed."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from eventstore.errors import LogCorrupt, LogUnreadable
from eventstore.finding import Finding
from eventstore.heads import checkpoint_at
from eventstore.keys import load_vkey_file
from eventstore.lineage import lineage
from eventstore.merkle import TreeSize
from eventstore.reader import LogReader
from eventstore.verify import Note, checkpoint_findings
from projections.audit import PROJECTION, REMEDY
from projections.build import build
from projections.files import ProjectionFiles, ProjectionRefused
from projections.opening import check
from server.blobs import BlobStore
from server.encode import image_frame
from server.pace import Pace
from server.scrub import Checked, Part, Scrub
from tools.errors import CommandFailed
from tools.options import data_option, json_option, option
from tools.output import note, print_json, print_pairs, shown, size_text
from tools.progress import Bars, progress_bar

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
UNBOUNDED = 2**62
LABELS: dict[Part, str] = {
    "LOG": "log",
    "LOG_INDEXES": "log: indexes",
    "PROJECTION": "projection",
    "PROJECTION_INDEXES": "projection: indexes",
    "BLOBS": "blobs",
}


@click.command()
@data_option
@option(
    "--checkpoint",
    "checkpoints",
    type=_FILE,
    multiple=True,
    metavar="FILE",
    help="A checkpoint that you kept; repeatable. Without one, a history rewritten as a whole looks whole.",
)
@option(
    "--public-key",
    type=_FILE,
    metavar="FILE",
    help="The keys to believe, as `log public-key` printed them.  [default: those that the log names itself]",
)
@json_option
def verify(data: Path, checkpoints: tuple[Path, ...], public_key: Path | None, as_json: bool) -> int:
    """Read a whole data directory again and say whether it is what was written and signed.

    Every event: its bytes, leaf hash, place, columns, stream version and time. The tree up to its root; each
    kept checkpoint, its signature, and that the log still begins with what it vouches for. Every row of the
    projection against the event that made it. Every blob against its digest. It reads beside a running server
    and repairs nothing; the exit code is 1 if anything was found.

    What is found is told apart: EDIT, TRUNCATION, REORDER, INSERTION and COLUMN are seen in the log itself;
    ROLLBACK (an older state put back) and FORK (another history) by a checkpoint kept elsewhere.

    \b
    Examples:
      imageledger log verify --data imageledger-data
      imageledger log verify --checkpoint friday.note --public-key log.vkey --json | jq .findings
    """
    with LogReader.open(data / "log.db") as log:
        outside = [Note(str(path), _note(path), outside=True) for path in checkpoints]
        listener = _Listener()
        found = listener.findings
        with suppress(LogCorrupt, LogUnreadable):  # Which are told of each event.
            keys = load_vkey_file(public_key) if public_key is not None else lineage(log).verifiers
            found += checkpoint_findings(log, outside, keys)
        checked = _scrubbed(data, log, listener)
        size, root = _head(log)
    found.sort(key=lambda finding: (finding.position or 0, finding.kind))
    for finding in found:
        where = f"position {finding.position}: " if finding.position else ""
        note(shown(f"error: {finding.kind}: {where}{finding.message}"))
    for remedy in dict.fromkeys(finding.remedy for finding in found):
        note(shown(remedy))
    if as_json:
        print_json(_document(size, root, checked, found))
    else:
        print_pairs(_pairs(size, root, checked, found, len(checkpoints)))
    return 1 if found else 0


def _note(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandFailed(
            "INVALID_ARGUMENT", f"{path} cannot be read as a note: {error}", remedy="Take the original."
        ) from None


def _head(log: LogReader) -> tuple[int, str | None]:
    """The size, and the root if the hashes that it is made of are whole."""
    try:
        head = log.head()
        return head, checkpoint_at(log, TreeSize(head)).root.hex()
    except (LogCorrupt, LogUnreadable):
        return 0, None


def _scrubbed(data: Path, log: LogReader, listener: _Listener) -> Checked:
    with ExitStack() as stack:
        live = _projection(data, log, listener, stack)
        scrub = Scrub(
            log_path=data / "log.db",
            live=lambda: live or data,
            blobs=BlobStore(data / "blobs"),
            pace=Pace(UNBOUNDED, wait=lambda seconds: None),
            listener=listener,
        )
        with listener.bars:
            return scrub.run() if live is not None else scrub.read_log()


def _projection(data: Path, log: LogReader, listener: _Listener, stack: ExitStack) -> Path | None:
    """The live projection; where there is none of this version a new one, which tells what blobs are used.

    None where the log is too damaged to make one.
    """
    files = ProjectionFiles(data)
    try:
        path = files.current()
        if path is not None and check(path, log, encode=image_frame) is not None:
            return path
    except ProjectionRefused as error:
        listener.finding("PROJECTION", Finding(PROJECTION, None, str(error), REMEDY))
    except (LogCorrupt, LogUnreadable):
        return None
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="imageledger-verify-")))
    try:
        with progress_bar("building a projection", length=log.head()) as move:
            files = ProjectionFiles(directory)
            return build(files, log, encode=image_frame, on_progress=lambda done, head: move(done))
    except (LogCorrupt, LogUnreadable, AssertionError):
        # An event that follows from none before it is told of, too: by its version.
        return None


class _Listener:
    """Collects what a scrub finds, and shows how far it is."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.bars = Bars()

    def progress(self, part: Part, done: int, total: int) -> None:
        self.bars.show(LABELS[part], done, total, is_bytes=part == "BLOBS")

    def finding(self, part: Part, found: Finding) -> None:
        self.findings.append(found)


def _document(size: int, root: str | None, checked: Checked, findings: list[Finding]) -> dict[str, Any]:
    return {
        "ok": not findings,
        "size": size,
        "root": root,
        "checked": asdict(checked),
        "findings": [
            {"kind": one.kind, "position": one.position, "message": one.message} for one in findings
        ],
    }


def _pairs(
    size: int, root: str | None, checked: Checked, findings: list[Finding], outside: int
) -> list[tuple[str, str]]:
    return [
        ("events", str(size)),
        ("root", root or "unknown: its hashes are damaged"),
        (
            "kept checkpoints",
            str(outside) if outside else "none given: only one kept elsewhere shows a rewrite",
        ),
        ("index entries", str(checked.log_entries)),
        ("projection rows", str(checked.rows)),
        ("blobs", f"{checked.blobs} ({size_text(checked.blob_bytes)})"),
        ("findings", f"{len(findings)}{', and no further ones were looked for' if checked.gave_up else ''}"),
    ]
