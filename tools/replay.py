"""`imageledger replay`."""

from __future__ import annotations

from pathlib import Path

import click

from eventstore.event import Position
from eventstore.reader import LogReader
from projections.changes import changes, image_json
from projections.domain.command import Image
from projections.moments import AtHead, Moment, format_seconds
from projections.replay import changed, events_until, state_after
from projections.steps import Walk
from tools.errors import CommandFailed
from tools.events_json import changes_json, event_json, event_text
from tools.moments import moment_option, resolve
from tools.options import data_option, json_option, option
from tools.output import Table, note, print_json, print_json_line
from tools.progress import counted
from tools.step import Screen, run

STATE_COLUMNS = ("id", "status", "folder_id", "name", "family", "created_at", "size")


@click.command()
@data_option
@moment_option("--from", "since", help="Show the events from this one on.  [default: the first]")
@moment_option("--until", help="The last event to replay.  [default: head]")
@option("--resource", "--image", metavar="ID", help="Only what happened to this image, disk or snapshot.")
@option("--events", "as_events", is_flag=True, help="Show each event and what it changed; the default.")
@option("--state", "as_state", is_flag=True, help="Show the images that the events lead to.")
@option("--step", "as_steps", is_flag=True, help="Walk along the events at the terminal; ? lists the keys.")
@json_option
def replay(
    data: Path,
    since: Moment | None,
    until: Moment | None,
    resource: str | None,
    as_events: bool,
    as_state: bool,
    as_steps: bool,
    as_json: bool,
) -> None:
    """Fold the log anew, and show its events with what each changed, or the state they lead to.

    It reads the log alone, needs no projection, and works beside a running server. MOMENT is a position
    (1234), an RFC 3339 time (2026-11-23T10:00:00Z: the last position at or before it), or head; both ends are
    included. What changed is told as `field: old → new` with the fields of the image, or of the disk or
    snapshot: a creation begins every field, a deletion ends every field.

    \b
    Examples:
      imageledger replay --image fd8k7p2m4x9q1v6n3tbz
      imageledger replay --state --until 2026-11-23T10:00:00Z --json | jq '.images[].name'
      imageledger replay --from 1200 --json | jq -c 'select(.actor == "alice") | .changes'
      imageledger replay --step --from 2026-11-23T10:00:00Z
    """
    if as_events + as_state + as_steps > 1:
        raise click.UsageError("--events, --state and --step are different answers: give one of them")
    if as_steps and as_json:
        raise click.UsageError("--step is for people at a terminal: leave --json out, or use --events")
    if as_state and since is not None:
        raise click.UsageError(
            "--from does not go with --state: a state is made of all events before it; leave --from out"
        )
    with LogReader.open(data / "log.db") as log:
        last = resolve(log, until or AtHead())
        if as_state:
            _show_state(log, until=last, resource=resource, as_json=as_json)
        elif as_steps:
            screen = Screen(log, Walk(log, first=_first(log, since, last), last=last))
            if resource is not None:
                screen.follow(resource)
            run(screen)
        else:
            _show_events(log, _first(log, since, last), last, resource=resource, as_json=as_json)


def _first(log: LogReader, since: Moment | None, last: int) -> Position:
    first = Position(1) if since is None else resolve(log, since)
    if since is not None and first > last:
        raise CommandFailed(
            "INVALID_ARGUMENT",
            f"--from is position {first} and --until is position {last}: the range is empty",
            remedy="Give a --from that is not after --until.",
        )
    return first


def _show_events(log: LogReader, first: int, last: int, *, resource: str | None, as_json: bool) -> None:
    # What lies before the first is folded as well: what an event changed depends on it.
    event = None
    for event, change in changed(events_until(log, until=last, resource_id=resource)):
        if event.position < first:
            continue
        differences = changes(change.before, change.after)
        if as_json:
            print_json_line({**event_json(event), "changes": changes_json(differences)})
        else:
            print(event_text(event, differences))
    if event is None and resource is not None:
        note(f"no event up to position {last} is of {resource}")


def _show_state(log: LogReader, *, until: int, resource: str | None, as_json: bool) -> None:
    state = state_after(counted("events", events_until(log, until=until, resource_id=resource)))
    images = [image for _, image in sorted(state.images.items())]
    if as_json:
        document = {"position": until, "images": [image_json(image) for image in images]}
        print_json(document)
    else:
        print(f"position {until}, images: {len(images)}")
        Table(*(name.upper() for name in STATE_COLUMNS)).print(_cells(image) for image in images)


def _cells(image: Image) -> list[str]:
    columns = {**image, "created_at": format_seconds(image["created_at"])}
    return [str(columns[name]) or "-" for name in STATE_COLUMNS]
