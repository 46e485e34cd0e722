"""`decide`: the one door from commands to events."""

from __future__ import annotations

from typing import assert_never

from .command import Asked, Decision, State
from .image import CreateImage, DeleteImage, UpdateImage, decide_create, decide_delete, decide_update
from .operation import CancelOperation, decide_cancel, repeated
from .source import RegisterSource, RemoveSource, decide_register, decide_remove

Command = CreateImage | UpdateImage | DeleteImage | RegisterSource | RemoveSource | CancelOperation


def decide(state: State, command: Command, *, at: int) -> Decision:
    """The events that the command becomes, or the operation that answered it before.

    Pure: ids come in with the command, and `at` (nanoseconds, the batch's stamp) serves only for
    the 24 hours of an Idempotency-Key. Raises Refused.
    """
    if isinstance(command, CancelOperation):
        return decide_cancel(state, command)
    return repeated(state, asked_of(command), at=at) or _decide_new(state, command)


def asked_of(command: Command) -> Asked:
    return command.asked


def _decide_new(
    state: State, command: CreateImage | UpdateImage | DeleteImage | RegisterSource | RemoveSource
) -> Decision:
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
