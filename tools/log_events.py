"""`imageledger log show` and `log watch`: the events of a server, as they are stored and as they happen."""

from __future__ import annotations

import select
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from eventstore.errors import EnvelopeTooNew, EventMalformed
from eventstore.event import Event, decode
from eventstore.upcast import newest_schema
from projections.domain.evolve import IMAGE_EVENTS, LOG_EVENTS, SOURCE_EVENTS
from projections.domain.upcasters import UPCASTERS
from projections.moments import Moment
from server.gen.imageledger.v1 import history_service_pb2 as pb
from tools.client import HISTORY, Client, client_options
from tools.errors import CommandFailed
from tools.events_json import event_json, event_text, unreadable_json, value_text
from tools.moments import moment_message, moment_option
from tools.options import json_option, option
from tools.output import note, print_json_line

KNOWN = IMAGE_EVENTS | SOURCE_EVENTS | LOG_EVENTS
LOOK_MS = 500


@click.command()
@moment_option("--from", "since", help="The first event.  [default: that of position 1]")
@moment_option("--to", "until", help="The last event.  [default: head]")
@option("--folder", "folder_id", metavar="FOLDER", help="Only events of this folder.")
@option("--resource", "--image", "resource_id", metavar="ID", help="Only of this image, disk or snapshot.")
@option("--operation", "operation_id", metavar="ID", help="Only of this operation.")
@option("--actor", metavar="SUBJECT", help="Only what this subject asked for.")
@option("--type", metavar="TYPE", help="Only of this type, like ImageDeleted.")
@json_option
@client_options
def show(
    client: Client, since: Moment | None, until: Moment | None, as_json: bool, **filters: str | None
) -> None:
    """Print the events of the log in order; with --json one a line, as they are stored.

    MOMENT is a position (1234), an RFC 3339 time (2026-11-23T10:00:00Z: the last position at or before it),
    or head; both ends are included. Filters narrow each other; by actor or type alone all of it is read.

    \b
    Examples:
      imageledger log show --from 1200 --to 1210
      imageledger log show --image fd8k7p2m4x9q1v6n3tbz --json | jq -c '[.position, .type, .actor]'
      imageledger log show --from 2026-11-23T00:00:00Z --type ImageDeleted --actor alice
    """
    request = pb.ReadEventsRequest(
        from_moment=moment_message(since),
        to_moment=moment_message(until),
        **{name: value for name, value in filters.items() if value is not None},
    )
    printer = EventPrinter(as_json=as_json)
    for answer in client.download(f"{HISTORY}/ReadEvents", request, pb.ReadEventsResponse):
        printer.print(answer.events)
    if not printer.count:
        note("no event in this range" + (" meets the filters" if any(filters.values()) else ""))


@click.command()
@moment_option("--from", "since", help="The first event to print.  [default: the one that comes next]")
@json_option
@client_options
def watch(client: Client, since: Moment | None, as_json: bool) -> None:
    """Print events as they are written, until Ctrl-C: none is left out, none comes twice.

    With --from P it begins with the event of position P, which may be the one that comes next. A watch that
    breaks says from which position to go on.

    \b
    Examples:
      imageledger log watch
      imageledger log watch --from 1200 --json | jq -c 'select(.type == "ImageDeleted")'
    """
    request = pb.WatchRequest(from_moment=moment_message(since))
    printer, following = EventPrinter(as_json=as_json), 0
    try:
        with while_read(client.close):
            for answer in client.download(f"{HISTORY}/Watch", request, pb.WatchResponse):
                printer.print(answer.events)
                sys.stdout.flush()
                following = answer.next_position
    except CommandFailed as error:
        if not following:
            raise
        go_on = f"`imageledger log watch --from {following}` goes on where this ended"
        remedy = go_on if error.remedy is None else f"{go_on}\n{error.remedy}"
        raise CommandFailed(error.code, str(error), remedy=remedy) from error


class EventPrinter:
    """Prints events; what this version does not know as it is stored, with a note the first time."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._noted: set[tuple[str, int]] = set()
        self.count = 0

    def print(self, messages: Iterable[pb.Event]) -> None:
        """Raises CommandFailed for bytes that are no event."""
        for message in messages:
            self.count += 1
            event = self._event(message)
            if event is None:
                self._print_unreadable(message)
            elif self._as_json:
                print_json_line(event_json(event))
            else:
                print(event_text(event))
                if event.data:
                    print(f"    {value_text(event.data)}")

    def _event(self, message: pb.Event) -> Event | None:
        try:
            event = decode(message.body)
        except EnvelopeTooNew as error:
            self._note(message.position, "an envelope", error.found)
            return None
        except EventMalformed as error:
            raise CommandFailed(
                "DATA_LOSS",
                f"position {message.position}: {error}",
                remedy="look at what is between this command and the server",
            ) from error
        if event.type not in KNOWN or event.schema > newest_schema(event.type, UPCASTERS):
            self._note(event.position, event.type, event.schema)
        return event

    def _print_unreadable(self, message: pb.Event) -> None:
        fields: dict[str, Any] = unreadable_json(message.body)
        if self._as_json:
            print_json_line(fields)
        else:
            print(f"#{message.position}  {value_text(fields)}")

    def _note(self, position: int, what: str, schema: int) -> None:
        if (what, schema) not in self._noted:
            self._noted.add((what, schema))
            note(
                f"position {position}: this version does not know {what} of schema {schema},"
                " and prints such events as they are stored"
            )


@contextmanager
def while_read(end: Callable[[], None]) -> Iterator[None]:
    """Calls `end` when nobody reads stdout any more, and ends quietly: events may not come for days."""
    is_closed, is_over = threading.Event(), threading.Event()

    def look() -> None:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        while not is_over.is_set():
            # Asked for nothing, it tells of errors alone, and such is a pipe without a reader.
            if any(found & select.POLLERR for _, found in poll.poll(LOOK_MS)):
                is_closed.set()
                end()
                return

    if hasattr(select, "poll") and _is_file(sys.stdout):
        threading.Thread(target=look, name="stdout", daemon=True).start()
    try:
        yield
    except CommandFailed:
        if is_closed.is_set():
            raise BrokenPipeError from None
        raise
    finally:
        is_over.set()


def _is_file(stream: Any) -> bool:
    try:
        stream.fileno()
    except (OSError, AttributeError):
        return False
    return True
