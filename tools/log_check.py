"""`imageledger log check`: what a receipt proves, without a server and without a log."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import click

from eventstore import receipt as proofs
from eventstore.checkpoint import Checkpoint
from eventstore.errors import ReceiptMalformed, ReceiptWrong
from eventstore.event import Event
from eventstore.keys import Verifier, load_vkey_file
from eventstore.merkle import leaf_index
from eventstore.receipt import Consistency, Grown, Proven, Receipt
from eventstore.receipt_text import TLOG_PROOF, parse_json, parse_tlog_proof
from projections.moments import format_time
from tools.errors import CommandFailed, explain
from tools.events_json import event_json
from tools.options import json_option, option
from tools.output import note, print_json_line, print_pairs

Proof: TypeAlias = Receipt | Consistency

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument(
    "source",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    metavar="RECEIPT",
)
@option(
    "--public-key",
    type=_FILE,
    required=True,
    metavar="FILE",
    help="What `log public-key` printed, kept since before: one key a line.",
)
@option(
    "--old",
    type=_FILE,
    metavar="FILE",
    help="The older checkpoint that a consistency proof begins at: the note as you kept it.",
)
@option(
    "--event",
    "body",
    type=_FILE,
    metavar="FILE",
    help="The event's bytes, for a tlog-proof that came without them.",
)
@json_option
def check(source: Path, public_key: Path, old: Path | None, body: Path | None, as_json: bool) -> int:
    """Check receipts offline, and tell what each proves.

    RECEIPT is a file, or - for stdin: receipts or consistency proofs as JSON, one after the other, or the
    text of a .tlog-proof file. Nothing is believed but the key, which must be called like the log. The exit
    code is 1 if one of them does not hold.

    \b
    Examples:
      imageledger log check receipt.json --public-key log.vkey
      imageledger log prove --image fd8k7p2m4x9q1v6n3tbz | imageledger log check - --public-key log.vkey
      imageledger history blame fd8k7p2m4x9q1v6n3tbz --prove --json | jq '.fields[].receipt' |
          imageledger log check - --public-key log.vkey
      imageledger log check grown.json --old friday.note --public-key log.vkey
    """
    keys = load_vkey_file(public_key)
    found = _proofs(_text(source), body.read_bytes() if body else None)
    if old is None and any(isinstance(proof, Consistency) for proof in found):
        raise click.UsageError(
            "a consistency proof begins at an older checkpoint: give the one you kept with --old"
        )
    old_note = "" if old is None else _text(old)
    failed = None
    for number, proof in enumerate(found, 1):
        try:
            _print(proof, keys, old_note, as_json=as_json)
        except ReceiptWrong as error:
            failed = explain(error) or ("INTERNAL", str(error), None)
            which = f"proof {number}: " if len(found) > 1 else ""
            note(f"error: {failed[0]}: {which}{failed[1]}")
    if failed is None:
        return 0
    note(failed[2] or "")
    return 1


def _print(proof: Proof, keys: tuple[Verifier, ...], old_note: str, *, as_json: bool) -> None:
    """Tells what a proof proves. Raises ReceiptWrong."""
    match proof:
        case Receipt():
            proven = proofs.check(proof, keys)
            document, pairs = _proven_json(proven), _proven_pairs(proven)
        case Consistency():
            grown = proofs.check_grown(proof, old_note, keys)
            document, pairs = _grown_json(grown), _grown_pairs(grown)
    if as_json:
        print_json_line(document)
    else:
        print_pairs(pairs)


def _proofs(text: str, body: bytes | None) -> list[Proof]:
    """All proofs of a text. Raises ReceiptMalformed, CommandFailed."""
    if text.startswith(TLOG_PROOF):
        return [parse_tlog_proof(text, body)]
    found = [parse_json(document) for document in _documents(text)]
    if not found:
        raise ReceiptMalformed("it is empty")
    return found


def _documents(text: str) -> Iterator[object]:
    """The JSON documents that stand one after the other in a text. Raises ReceiptMalformed."""
    decoder = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_refuse)
    at = 0
    while rest := text[at:].lstrip():
        at = len(text) - len(rest)
        try:
            document, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            line = text.count("\n", 0, at) + 1
            raise ReceiptMalformed(
                f"from line {line} on it is neither JSON nor a tlog-proof: {error}"
            ) from None
        yield document


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, no key of which may be there twice: two readers could take it for two receipts."""
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key of an object is there twice")
    return made


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _text(path: Path) -> str:
    """The text of a file, byte for byte; of stdin for -. Raises CommandFailed."""
    raw = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise CommandFailed(
            "INVALID_ARGUMENT",
            f"{path} is not UTF-8 text",
            remedy="Give a receipt, a consistency proof or a note as it was made.",
        ) from None


def _proven_json(proven: Proven) -> dict[str, Any]:
    event = proven.event
    return {
        "proven": "inclusion",
        "position": event.position,
        "index": leaf_index(event.position),
        "event": event_json(event),
        "checkpoint": _checkpoint_json(proven.checkpoint),
    }


def _grown_json(grown: Grown) -> dict[str, Any]:
    return {
        "proven": "consistency",
        "old": _checkpoint_json(grown.old),
        "checkpoint": _checkpoint_json(grown.new),
    }


def _checkpoint_json(checkpoint: Checkpoint) -> dict[str, Any]:
    return {"origin": checkpoint.origin, "size": checkpoint.size, "root": checkpoint.root.hex()}


def _proven_pairs(proven: Proven) -> list[tuple[str, str]]:
    event, checkpoint = proven
    return [
        ("proven", f"event {event.position} of the {checkpoint.size} that the log had"),
        *_event_pairs(event),
        ("log", checkpoint.origin),
        ("root", checkpoint.root.hex()),
    ]


def _event_pairs(event: Event) -> list[tuple[str, str]]:
    return [
        ("type", event.type),
        ("resource", event.resource_id or ""),
        ("at", format_time(event.at)),
        ("operation", event.operation_id or ""),
        ("actor", f"{event.actor} ({event.auth})"),
        ("reason", event.reason or ""),
        ("data", json.dumps(event.data, ensure_ascii=False)),
    ]


def _grown_pairs(grown: Grown) -> list[tuple[str, str]]:
    old, new = grown
    return [
        ("proven", f"the log of {new.size} events begins with the {old.size} it had before"),
        ("log", new.origin),
        ("old root", old.root.hex()),
        ("root", new.root.hex()),
    ]
