"""Moments on the command line, and the positions they are in a log that is read from its file."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, assert_never

import click

from eventstore.event import Position
from eventstore.reader import LogReader
from projections.moments import (
    AtHead,
    AtPosition,
    AtTime,
    Moment,
    MomentInvalid,
    format_time,
    parse_moment,
)
from server.gen.imageledger.v1 import history_service_pb2
from server.moments import SETTLE_NS
from tools.errors import CommandFailed
from tools.options import Command, option


def moment_option(name: str, *names: str, help: str) -> Callable[[Command], Command]:
    """An option that takes a position, an RFC 3339 time or `head`, and gives a Moment or None."""
    return option(name, *names, metavar="MOMENT", help=help, callback=_parse)


def _parse(context: click.Context, parameter: click.Parameter, text: str | None) -> Moment | None:
    if text is None:
        return None
    try:
        return parse_moment(text, head=True)
    except MomentInvalid as error:
        raise click.BadParameter(error.message, context, parameter) from None


def moment(text: str) -> Moment:
    """The type of an argument, or of an option that must be given, that is a moment. Raises BadParameter."""
    try:
        return parse_moment(text, head=True)
    except MomentInvalid as error:
        raise click.BadParameter(error.message) from None


def moment_message(moment: Moment | None) -> history_service_pb2.Moment:
    """The moment as a request has it, for the server to resolve; an empty one where none is given."""
    message = history_service_pb2.Moment()
    match moment:
        case AtPosition(position):
            message.position = position
        case AtTime(ns):
            message.time.FromNanoseconds(ns)
        case AtHead():
            message.head.SetInParent()
        case None:
            pass
        case _:
            assert_never(moment)
    return message


def resolve(
    log: LogReader,
    moment: Moment,
    *,
    clock: Callable[[], int] = time.time_ns,
    sleep: Callable[[float], Any] = time.sleep,
) -> Position:
    """The last position at or before a moment; 0 is the empty state.

    A time less than 2 s old is answered once it is that old: until then a server may still append an event
    stamped at or before it. Raises CommandFailed for what is beyond the head, in the future, or before the
    log begins.
    """
    head = log.head()
    match moment:
        case AtHead():
            return head
        case AtPosition(position) if position <= head:
            return Position(position)
        case AtPosition(position):
            raise CommandFailed(
                "OUT_OF_RANGE",
                f"position {position} is beyond the head of the log, {head}",
                remedy=f"Give a position up to {head}, or head.",
            )
    at = moment.ns
    if head == 0 or at > log.at(head):
        _wait_until_settled(at, now=clock(), sleep=sleep)
    position = log.position_at(at)
    if position == 0:
        raise CommandFailed("OUT_OF_RANGE", _nothing_yet(log, at), remedy="Give a later moment, or head.")
    return position


def _wait_until_settled(at: int, *, now: int, sleep: Callable[[float], Any]) -> None:
    if at > now:
        raise CommandFailed(
            "OUT_OF_RANGE",
            f"{format_time(at)} is in the future: it is {format_time(now)} here",
            remedy="Give a time that is past, or head.",
        )
    if now - at < SETTLE_NS:
        sleep((SETTLE_NS - (now - at)) / 1e9)


def _nothing_yet(log: LogReader, at: int) -> str:
    begins = f"begins at {format_time(log.at(Position(1)))}" if log.head() else "is empty"
    return f"nothing is in the log as of {format_time(at)}: it {begins}"
