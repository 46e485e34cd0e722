"""`imageledger history`: what happened to an image or a family, what differs, who set what, what broke it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import click

from eventstore.receipt_text import receipt_json
from projections.changes import Change
from projections.moments import Moment, format_time
from server.gen.imageledger.v1 import history_service_pb2 as pb
from server.gen.yandex.cloud.compute.v1 import image_pb2
from tools.bisect import bisect
from tools.client import HISTORY, Client, client_options, reader_options
from tools.differences import changes_of, diff_json, diff_lines, read_diff
from tools.events_json import change_text, changes_json, value_text
from tools.log_proofs import receipt_of
from tools.moments import moment
from tools.options import folder_option, json_option, option
from tools.output import Table, document, note, print_json, print_json_line, shown


@click.group()
def history() -> None:
    """What happened: to an image, to a family, between two moments, and by whom."""


history.add_command(bisect)


@history.command()
@click.argument("image_id", metavar="ID")
@json_option
@reader_options
def image(client: Client, image_id: str, as_json: bool) -> None:
    """Print every event of an image and what it changed, its end included; with --json one a line.

    \b
    Examples:
      imageledger history image fd8k7p2m4x9q1v6n3tbz
      imageledger history image ID --json | jq -c 'select(.changes[].field == "labels")'
    """
    request = pb.ImageHistoryRequest(image_id=image_id)
    for answer in client.download(f"{HISTORY}/ImageHistory", request, pb.ImageHistoryResponse):
        for event in answer.events:
            if as_json:
                print_json_line(_event_json(event))
            else:
                print("\n".join(_event_lines(event)))


def _event_json(event: pb.ImageEvent) -> dict[str, Any]:
    return {
        "position": event.position,
        "type": event.type,
        "at": format_time(event.at.ToNanoseconds()),
        "actor": event.actor,
        "reason": event.reason or None,
        "operation_id": event.operation_id or None,
        "changes": changes_json(changes_of(event.change)),
    }


def _event_lines(event: pb.ImageEvent) -> Iterator[str]:
    at = format_time(event.at.ToNanoseconds())
    yield shown(f"#{event.position}  {at}  {event.type}  by {event.actor}  {event.operation_id}".rstrip())
    if event.reason:
        yield f"    reason: {shown(event.reason)}"
    for change in _told(changes_of(event.change), event.type):
        yield f"    {change_text(change)}"


def _told(changes: list[Change], type: str) -> list[Change]:
    """What a person wants to hear: that an end ends every field goes without saying."""
    return [] if all(change.new is None for change in changes) and type != "ImageUpdated" else changes


@history.command()
@click.argument("family", metavar="FAMILY")
@folder_option
@json_option
@reader_options
def family(client: Client, family: str, folder_id: str, as_json: bool) -> None:
    """Print what a family resolved to, from which position until which, oldest first, and who changed it.

    SINCE is the position of the event that made the image the family's latest, UNTIL that of the event that
    ended it: nothing there means that it still is.

    \b
    Examples:
      imageledger history family web --folder standard-images
      imageledger log show --from UNTIL --to UNTIL
    """
    request = pb.FamilyHistoryRequest(folder_id=folder_id, family=family)
    table = Table("IMAGE_ID", "SINCE", "UNTIL", "AT", "ACTOR", "OPERATION_ID")
    is_empty = True
    for answer in client.download(f"{HISTORY}/FamilyHistory", request, pb.FamilyHistoryResponse):
        is_empty = False
        rows = [_family_json(found) for found in answer.answers]
        if as_json:
            for row in rows:
                print_json_line(row)
        else:
            table.print([["" if cell is None else str(cell) for cell in row.values()] for row in rows])
    if is_empty:
        note(f"family {family} of folder {folder_id} never resolved to an image")


def _family_json(answer: pb.FamilyAnswer) -> dict[str, Any]:
    return {
        "image_id": answer.image_id,
        "since": answer.since,
        "until": answer.until or None,
        "at": format_time(answer.at.ToNanoseconds()),
        "actor": answer.actor,
        "operation_id": answer.operation_id,
    }


@history.command()
@click.argument("from_moment", metavar="A", type=moment)
@click.argument("to_moment", metavar="B", type=moment)
@option("--folder", "folder_id", metavar="FOLDER", help="Only images of this folder.  [default: all]")
@json_option
@client_options
def diff(
    client: Client, from_moment: Moment, to_moment: Moment, folder_id: str | None, as_json: bool
) -> None:
    """Print what differs between two moments: images added, removed, and changed field by field.

    A and B are positions (1234), RFC 3339 times (2026-11-23T10:00:00Z: the last position at or before it) or
    head, A not after B. It costs as much as what happened between them, however much there is.

    \b
    Examples:
      imageledger history diff 1200 head --folder standard-images
      imageledger history diff 2026-11-20T00:00:00Z 2026-11-23T00:00:00Z --json | jq '.removed[].id'
    """
    found = read_diff(client, from_moment, to_moment, folder_id=folder_id)
    if as_json:
        print_json(diff_json(found))
        return
    for line in diff_lines(found):
        print(line)


@history.command()
@click.argument("image_id", metavar="ID")
@option("--prove", is_flag=True, help="With --json: add to each field the receipt of its event.")
@json_option
@reader_options
def blame(client: Client, image_id: str, prove: bool, as_json: bool) -> None:
    """Print for each field of an image its value, and which event set it: when, by whom, in which operation.

    An update that sets the value that was there counts as setting it. A field that was never updated has its
    value from the event that started the image, if the caller gave it then, else from the one that finished
    it.

    \b
    Examples:
      imageledger history blame fd8k7p2m4x9q1v6n3tbz
      imageledger history blame ID --as-of 2026-11-23T10:00:00Z --json | jq '.fields[] | {field, actor}'
      imageledger history blame ID --prove --json | jq '.fields[].receipt' |
          imageledger log check - --public-key log.vkey
    """
    if prove and not as_json:
        raise click.UsageError("receipts are JSON: give --json with --prove")
    request = pb.BlameRequest(image_id=image_id, prove=prove)
    answer = client.call(f"{HISTORY}/Blame", request, pb.BlameResponse)
    rows = list(_blame_rows(answer.fields, answer.image))
    if prove:
        receipts = {
            message.position: receipt_json(receipt_of(message, answer.checkpoint))
            for message in answer.receipts
        }
        rows = [{**row, "receipt": receipts[row["position"]]} for row in rows]
    if as_json:
        print_json({"image_id": image_id, "position": answer.position, "fields": rows})
        return
    table = Table("FIELD", "VALUE", "POSITION", "AT", "ACTOR", "OPERATION_ID")
    table.print([[_cell(name, value) for name, value in row.items()] for row in rows])


def _blame_rows(fields: Iterable[pb.FieldBlame], image: image_pb2.Image) -> Iterator[dict[str, Any]]:
    values = document(image)
    for blamed in fields:
        yield {
            "field": blamed.field,
            "value": values.get(blamed.field),
            "position": blamed.position,
            "at": format_time(blamed.at.ToNanoseconds()),
            "actor": blamed.actor,
            "operation_id": blamed.operation_id,
        }


def _cell(name: str, value: Any) -> str:
    return value_text(value) if name == "value" else str(value)
