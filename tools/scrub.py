"""`imageledger scrub`."""

from __future__ import annotations

from typing import Any

import click

from server.gen.imageledger.v1 import scrub_service_pb2 as pb
from tools.client import Client, client_options
from tools.errors import CommandFailed
from tools.options import json_option, option
from tools.output import note, print_json, print_pairs, shown, size_text
from tools.progress import Bars

SERVICE = "imageledger.v1.ScrubService"
MIB = 1024 * 1024
LABELS = {
    pb.LOG: "log",
    pb.LOG_INDEXES: "log: indexes",
    pb.PROJECTION: "projection",
    pb.PROJECTION_INDEXES: "projection: indexes",
    pb.BLOBS: "blobs",
}


@click.command()
@option(
    "--rate",
    type=click.IntRange(1, 1024 * 1024),
    default=64,
    metavar="MIB",
    help="How many MiB the server reads in a second, at most.",
)
@json_option
@client_options
def scrub(client: Client, rate: int, as_json: bool) -> int:
    """Let the server read and check what its start does not: every event, row, index entry and blob.

    Calls are answered meanwhile. Nothing is repaired: what is found is printed with its position and what to
    do about it, and the exit code is 1. Ctrl-C ends it; so does a stop of the server. There is one at a time.

    \b
    Examples:
      imageledger scrub
      imageledger scrub --rate 200 --json | jq .findings
    """
    findings: list[pb.ScrubFinding] = []
    try:
        checked = _scrubbed(client, rate, findings)
    except KeyboardInterrupt:
        note(f"the scrub was ended before it had read everything; it had found {len(findings)}")
        raise
    for remedy in dict.fromkeys(finding.remedy for finding in findings):
        note(shown(remedy))
    if as_json:
        print_json(_document(checked, findings))
    else:
        print_pairs(_pairs(checked, findings))
    return 1 if findings else 0


def _scrubbed(client: Client, rate: int, findings: list[pb.ScrubFinding]) -> pb.ScrubChecked:
    """What was read; findings are told as they come, and added to the list."""
    request = pb.ScrubRequest(bytes_per_second=rate * MIB)
    with Bars() as bars:
        for said in client.download(f"{SERVICE}/Scrub", request, pb.ScrubResponse):
            if said.HasField("progress"):
                part, done, total = said.progress.part, said.progress.done, said.progress.total
                bars.show(LABELS[part], done, total, is_bytes=part == pb.BLOBS)
            elif said.HasField("finding"):
                findings.append(said.finding)
                bars.close()
                note(_line(said.finding))
            elif said.HasField("checked"):
                return said.checked
    raise CommandFailed("INTERNAL", "the server ended the scrub without a word", remedy="look at its log")


def _line(finding: pb.ScrubFinding) -> str:
    where = f"position {finding.position}: " if finding.position else ""
    return shown(f"error: {finding.kind}: {where}{finding.message}")


def _document(checked: pb.ScrubChecked, findings: list[pb.ScrubFinding]) -> dict[str, Any]:
    return {
        "ok": not findings,
        "checked": {
            "events": checked.position,
            "index_entries": checked.log_entries,
            "projection_rows": checked.rows,
            "blobs": checked.blobs,
            "blob_bytes": checked.blob_bytes,
            "unused_blobs": checked.unused_blobs,
            "unused_blob_bytes": checked.unused_blob_bytes,
            "gave_up": checked.gave_up,
        },
        "findings": [
            {
                "kind": finding.kind,
                "part": pb.ScrubPart.Name(finding.part).lower(),
                "position": finding.position or None,
                "message": finding.message,
                "remedy": finding.remedy,
            }
            for finding in findings
        ],
    }


def _pairs(checked: pb.ScrubChecked, findings: list[pb.ScrubFinding]) -> list[tuple[str, str]]:
    unused = f"{checked.unused_blobs} ({size_text(checked.unused_blob_bytes)}), removed after a while"
    return [
        ("events", str(checked.position)),
        ("index entries", str(checked.log_entries)),
        ("projection rows", str(checked.rows)),
        ("blobs", f"{checked.blobs} ({size_text(checked.blob_bytes)})"),
        ("unused blobs", unused if checked.unused_blobs else ""),
        ("findings", f"{len(findings)}{', and no further ones were looked for' if checked.gave_up else ''}"),
    ]
