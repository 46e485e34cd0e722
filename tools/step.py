"""`imageledger replay --step`: a log, event by event, at the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from eventstore.errors import EventStoreError
from eventstore.reader import LogReader
from projections.changes import IMAGE_FIELDS, SOURCE_FIELDS, image_json, source_json
from projections.domain.command import Image, Source
from projections.domain.evolve import EventUnknown
from projections.moments import MomentInvalid, parse_moment
from projections.steps import Found, Subject, Walk
from tools.errors import CommandFailed
from tools.events_json import change_text, event_text, value_text
from tools.moments import resolve

KEYS = (
    ("→ n space", "the next event"),
    ("← p", "the one before"),
    ("home end", "the first event, the last one"),
    ("g", "go to a position or a time"),
    ("f", "follow an image, or one field of it: ID [FIELD]; empty: the image here"),
    ("] [", "where what is followed changes next, or changed before"),
    ("s", "show the image here as it is now, after this event"),
    ("m", "set a mark here"),
    ("d", "what differs between the mark and here"),
    ("? q", "these keys; quit"),
)


class Screen:
    """What the terminal shows, and what each key does to it; knows no terminal, so that tests need none."""

    def __init__(self, log: LogReader, walk: Walk) -> None:
        self._log = log
        self.walk = walk
        self.mark = 0
        self.subject: Subject | None = None
        self.extra = ""
        self.note = ""

    def head(self) -> str:
        followed = "" if self.subject is None else f"  following {_subject_text(self.subject)}"
        place = f"position {self.walk.position} of {self.walk.last}  mark {self.mark}"
        return f"{self._log.log_id}  {place}{followed}"

    def body(self) -> str:
        """The event here with what it changed, then what was asked for beside it."""
        event = self.walk.event()
        if event is None:
            told = "before the first event: nothing is there"
        else:
            told = event_text(event, self.told(self.walk.changes, []))
            told += f"\n    {event.stream} version {event.version}"
            if event.operation_id:
                told += f", operation {event.operation_id}"
        return "\n\n".join(part for part in (told, self.extra) if part)

    def told(self, ask: Callable[[], Any], otherwise: Any) -> Any:
        """An answer; where the log cannot give it, the note says why."""
        try:
            return ask()
        except (EventStoreError, EventUnknown) as error:
            self.note = str(error)
            return otherwise

    def press(self, key: str) -> None:
        """What a key without a question does."""
        self.note = ""
        self.extra = ""
        match key:
            case "next":
                self._moved(self.walk.move(1), "this is the last event")
            case "back":
                self._moved(self.walk.move(-1), "there is nothing before")
            case "home":
                self.walk.go(type(self.walk.last)(min(1, self.walk.last)))
            case "end":
                self.walk.go(self.walk.last)
            case "mark":
                self.mark = self.walk.position
                self.note = f"marked position {self.mark}"
            case "show":
                self.extra = self.told(self._shown, "")
            case "diff":
                self.extra = difference_text(self.told(lambda: self.walk.difference(self.mark), []))
            case "help":
                self.extra = "\n".join(f"  {keys:<10} {what}" for keys, what in KEYS)
            case "onward" | "backward":
                self._seek(onward=key == "onward")

    def go(self, text: str) -> None:
        """To a moment."""
        self.note = self.extra = ""
        try:
            position = resolve(self._log, parse_moment(text.strip(), head=True))
        except MomentInvalid as error:
            self.note = error.message
        except CommandFailed as error:
            self.note = str(error)
        else:
            self._moved(self.walk.go(position), f"position {position} is behind --until, {self.walk.last}")

    def follow(self, text: str) -> None:
        """Set what the brackets look for."""
        self.note = self.extra = ""
        resource_id, _, field = text.strip().partition(" ")
        if not resource_id:
            event = self.walk.event()
            resource_id = (event.resource_id if event is not None else None) or ""
        field = field.strip()
        if not resource_id:
            self.note = "no image is here: give an id"
        elif field and field not in (*IMAGE_FIELDS, *SOURCE_FIELDS):
            self.note = f"there is no field {field}; there are {', '.join(IMAGE_FIELDS)}"
        else:
            self.subject = Subject(resource_id, field or None)

    def _seek(self, *, onward: bool) -> None:
        subject = self.subject
        if subject is None:
            self.note = "nothing is followed: press f first"
            return
        found = self.told(lambda: self.walk.seek(subject, onward=onward), None)
        if found is not None:
            where = "after this event" if onward else "before this event"
            self._moved(found, f"{_subject_text(subject)} does not change {where}")

    def _moved(self, moved: bool, otherwise: str) -> None:
        if not moved:
            self.note = otherwise

    def _shown(self) -> str:
        event = self.walk.event()
        resource_id = None if event is None else event.resource_id
        if self.subject is not None:
            resource_id = self.subject.resource_id
        if resource_id is None:
            return "no image is here"
        return resource_text(resource_id, self.walk.resource(resource_id, at=self.walk.position))


def resource_text(resource_id: str, resource: Image | Source | None) -> str:
    if resource is None:
        return f"{resource_id} is not there as of this event"
    values = source_json(resource) if "kind" in resource else image_json(resource)  # type: ignore[arg-type]
    return "\n".join(f"  {name}: {value_text(value)}" for name, value in values.items())


def difference_text(found: list[Found]) -> str:
    if not found:
        return "nothing differs"
    return "\n".join(
        line
        for one, fields in found
        for line in (f"@@ {one}", *(f"  {change_text(field)}" for field in fields))
    )


def _subject_text(subject: Subject) -> str:
    return subject.resource_id if subject.field is None else f"{subject.resource_id} {subject.field}"


def run(screen: Screen) -> None:
    """Show it until `q`, Ctrl-C or the end of the input. Raises CommandFailed without a terminal."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise CommandFailed(
            "FAILED_PRECONDITION",
            "--step needs a terminal",
            remedy="Use --events for a pipe or a file.",
        )
    from tools.terminal import application

    application(screen).run()
