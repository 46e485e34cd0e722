"""`decide`: the one door from commands to events."""

from __future__ import annotations

from typing import assert_never

from .command import Decision, State
from .image import CreateImage, DeleteImage, UpdateImage, decide_create, decide_delete, decide_update
from .imports import FailImport, FinishImport, decide_fail, decide_finish
from .operation import CancelOperation, decide_cancel, repeated
from .source import RegisterSource, RemoveSource, decide_register, decide_remove

# A beginning is an operation's first event and may repeat an earlier one; an ending goes on with one.
Beginning = CreateImage | UpdateImage | DeleteImage | RegisterSource | RemoveSource
Ending = CancelOperation | FinishImport | FailImport
Command = Beginning | Ending


def decide(state: State, command: Command, *, at: int) -> Decision:
    """The events that the command becomes, or the operation that answered it before.

    Pure: ids come in with the command, and `at` (nanoseconds, the batch's stamp) serves only for
    the 24 hours of an Idempotency-Key. Raises Refused.
    """
    match command:
        case CancelOperation():
            return decide_cancel(state, command)
        case FinishImport():
            return decide_finish(state, command)
        case FailImport():
            return decide_fail(state, command)
        case _:
            return repeated(state, command.asked, at=at) or _decide_beginning(state, command)


def _decide_beginning(state: State, command: Beginning) -> Decision:
    match command:
        case CreateImage():
            return decide_create(state, command)
        case UpdateImage():
            return decide_update(state, command)
        case DeleteImage():
            return decide_delete(state, command)
        case RegisterSource():
            return decide_register(command)
        case RemoveSource():
            return decide_remove(state, command)
        case _ as never:
            assert_never(never)
