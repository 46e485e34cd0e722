"""`imageledger log checkpoint`, `prove` and `public-key`: what a server vouches for, to be kept elsewhere."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from eventstore.database import fsync_directory
from eventstore.event import Position
from eventstore.merkle import TreeSize, leaf_index
from eventstore.receipt import Consistency, Receipt
from eventstore.receipt_text import consistency_json, receipt_json, tlog_proof
from server.gen.imageledger.v1 import history_service_pb2
from server.gen.imageledger.v1 import proof_service_pb2 as pb
from tools.client import HISTORY, PROOFS, Client, client_options, reader_options
from tools.errors import CommandFailed
from tools.options import json_option, option
from tools.output import note, print_json, print_json_line

_to_option = option(
    "--to", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write it there."
)
_overwrite_option = option("--overwrite", is_flag=True, help="Write over what is in FILE.")


@click.command()
@_to_option
@_overwrite_option
@json_option
@client_options
def checkpoint(client: Client, to: Path | None, overwrite: bool, as_json: bool) -> None:
    """Print the newest checkpoint, a signed note: so many events, and the one root hash that they have.

    Keep it where the operator of the server cannot reach it. Later `log prove --consistency` shows that the
    log still begins with these events, and a server that denies them has been caught. It covers all events
    that there are when it is asked for.

    \b
    Examples:
      imageledger log checkpoint --to friday.note
      imageledger log checkpoint --json | jq -r .root
    """
    if to is not None:
        _check_free(to, overwrite=overwrite)
    made = client.call(f"{PROOFS}/Checkpoint", pb.CheckpointRequest(), pb.SignedCheckpoint)
    if to is not None:
        _write(to, [made.note], overwrite=overwrite)
    if as_json:
        print_json(
            {
                "origin": made.origin,
                "size": made.size,
                "root": made.root.hex(),
                "checkpoint": made.note,
                "public_key": made.public_key,
            }
        )
    elif to is None:
        _print_exactly([made.note])


@click.command()
@click.argument("position", type=int, required=False)
@option("--image", "image_id", metavar="ID", help="Prove every event that made this image what it is.")
@option(
    "--consistency",
    "old",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="OLD_NOTE",
    help="Prove that the log begins with what this checkpoint covers, which you kept.",
)
@option(
    "--format",
    "form",
    type=click.Choice(["json", "tlog-proof"]),
    default="json",
    help="JSON, or the text of C2SP tlog-proof, of one event.",
)
@_to_option
@_overwrite_option
@option("--json", "as_json", is_flag=True, help="Changes nothing: proofs are JSON.")
@reader_options
def prove(
    client: Client,
    position: int | None,
    image_id: str | None,
    old: Path | None,
    form: str,
    to: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Print a receipt for the event at POSITION, which `log check` holds against the log's public key.

    A receipt has the event's bytes, the hashes that lead from it to the root, and the checkpoint with that
    root: who has the public key needs neither the server nor the log. --image prints one for each event that
    made the image what it is, or was --as-of a moment, a line each. If it is gone, its end is the last.

    \b
    Examples:
      imageledger log prove 1234 --to receipt.json
      imageledger log prove --image fd8k7p2m4x9q1v6n3tbz | imageledger log check - --public-key log.vkey
      imageledger log prove --image ID --as-of 2026-11-23T10:00:00Z --to evidence.jsonl
      imageledger log prove --consistency friday.note --to grown.json
    """
    if [position, image_id, old].count(None) != 2:
        raise click.UsageError("give one of POSITION, --image ID and --consistency OLD_NOTE")
    if form == "tlog-proof" and position is None:
        raise click.UsageError("--format tlog-proof is for the receipt of one POSITION")
    if to is not None:
        _check_free(to, overwrite=overwrite)
    if position is not None:
        texts = _of_event(client, position, form)
    elif image_id is not None:
        texts = _of_image(client, image_id)
    else:
        texts = _of_growth(client, old)
    if to is None:
        _print_exactly(texts)
    else:
        _write(to, texts, overwrite=overwrite)


@click.command()
@option("--all", "every", is_flag=True, help="Every key that has signed, with the sizes of its checkpoints.")
@json_option
@client_options
def public_key(client: Client, every: bool, as_json: bool) -> None:
    """Print the key that checks this log's checkpoints, on one line: what --public-key FILE takes.

    Fetch it once, from somebody whom you believe, and keep it. With --all the keys that signed before are
    there, too, each below a comment that says for which sizes; such a file is taken as well, and checks
    receipts of any age.

    \b
    Examples:
      imageledger log public-key > log.vkey
      imageledger log public-key --all > all.vkey
    """
    keys = client.call(f"{PROOFS}/PublicKeys", pb.PublicKeysRequest(), pb.PublicKeysResponse).keys
    if as_json:
        for key in keys:
            until = key.until_size or None
            print_json_line({"public_key": key.public_key, "from": key.from_size, "until": until})
    elif every:
        for key in keys:
            until_text = f"to {key.until_size}" if key.until_size else "on"
            print(f"# checkpoints of {key.from_size} events {until_text}\n{key.public_key}")
    elif keys:
        print(keys[-1].public_key)


def receipt_of(message: pb.Receipt, note_text: str) -> Receipt:
    """The receipt in a message, which leads to the checkpoint of this note."""
    position = Position(message.position)
    return Receipt(position, leaf_index(position), message.event, tuple(message.proof), note_text)


def _of_event(client: Client, position: int, form: str) -> Iterator[str]:
    made = client.call(f"{PROOFS}/Prove", pb.ProveRequest(position=position), pb.ProveResponse)
    receipt = receipt_of(made.receipt, made.checkpoint)
    yield tlog_proof(receipt) if form == "tlog-proof" else _document(receipt_json(receipt))


def _of_image(client: Client, image_id: str) -> Iterator[str]:
    request = history_service_pb2.ProveImageRequest(image_id=image_id)
    answer = history_service_pb2.ProveImageResponse
    for page in client.download(f"{HISTORY}/ProveImage", request, answer):
        for message in page.receipts:
            yield json.dumps(receipt_json(receipt_of(message, page.checkpoint)), ensure_ascii=False) + "\n"


def _of_growth(client: Client, old: Path | None) -> Iterator[str]:
    request = pb.ProveConsistencyRequest(old_checkpoint=_note(old) if old else "")
    made = client.call(f"{PROOFS}/ProveConsistency", request, pb.ProveConsistencyResponse)
    consistency = Consistency(
        TreeSize(made.old_size), TreeSize(made.size), tuple(made.proof), made.checkpoint
    )
    yield _document(consistency_json(consistency))


def _note(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError:
        raise CommandFailed(
            "INVALID_ARGUMENT",
            f"{path} is not UTF-8 text",
            remedy="give a checkpoint as `log checkpoint` wrote it",
        ) from None


def _document(fields: dict[str, object]) -> str:
    return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"


def _print_exactly(texts: Iterable[str]) -> None:
    """In UTF-8 whatever the locale: a note is signed byte for byte."""
    for text in texts:
        sys.stdout.flush()
        sys.stdout.buffer.write(text.encode())
    sys.stdout.buffer.flush()


def _check_free(path: Path, *, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise CommandFailed(
            "ALREADY_EXISTS",
            f"{path} is there already, and may be evidence",
            remedy="give another --to, or --overwrite",
        )


def _write(path: Path, texts: Iterable[str], *, overwrite: bool) -> None:
    """Gives the file its name once all of it is on disk. Raises CommandFailed, OSError."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with draft.open("wb") as file:
            count = 0
            for text in texts:
                file.write(text.encode())
                count += 1
            file.flush()
            os.fsync(file.fileno())
        _check_free(path, overwrite=overwrite)
        draft.replace(path)
        fsync_directory(path.parent)
    finally:
        draft.unlink(missing_ok=True)
    if count > 1:
        note(f"{count} receipts in {path}")
