"""`imageledger operation`, and waiting for operations that other commands begin."""

from __future__ import annotations

import time
from collections.abc import Mapping

import click
import grpc

from server.gen.yandex.cloud.compute.v1 import image_pb2
from server.gen.yandex.cloud.operation import operation_pb2, operation_service_pb2
from tools.client import OPERATIONS, Client, client_options, reader_options, writer_options
from tools.errors import CommandFailed
from tools.options import json_option, option
from tools.output import document, note, print_json, print_pairs, shown
from tools.progress import Progress

POLL_INTERVAL_S = 1.0
# How long a server may be away, to be restarted for example, before waiting is given up.
# What a server says that is away, or has too much to do, for a while.
AWAY = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")
PATIENCE_S = 60.0
CODES = {int(code.value[0]): code.name for code in grpc.StatusCode}


@click.group()
def operation() -> None:
    """Operations: what every create, update and delete is, also after it is done."""


@operation.command()
@click.argument("operation_id", metavar="ID")
@json_option
@reader_options
def get(client: Client, operation_id: str, as_json: bool) -> None:
    """Print an operation.

    \b
    Example:
      imageledger operation get ID --json
    """
    print_operation(_asked(client, operation_id)[0], as_json=as_json)


@operation.command()
@click.argument("operation_id", metavar="ID")
@option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Give up after so long; the operation goes on.",
)
@json_option
@client_options
def wait(client: Client, operation_id: str, timeout_s: float | None, as_json: bool) -> None:
    """Wait until an operation is done, and print it: exit 0 if it succeeded, 1 if it failed or was cancelled.

    \b
    Example:
      imageledger operation wait ID --timeout 600
    """
    done = wait_for(client, _asked(client, operation_id)[0], timeout_s=timeout_s)
    print_operation(done, as_json=as_json)
    check_succeeded(done)


@operation.command()
@click.argument("operation_id", metavar="ID")
@json_option
@writer_options
def cancel(client: Client, operation_id: str, as_json: bool) -> None:
    """Cancel an operation that is running, and print it; a finished one is printed as it is.

    \b
    Example:
      imageledger operation cancel ID --reason "the wrong file"
    """
    request = operation_service_pb2.CancelOperationRequest(operation_id=operation_id)
    answer = client.call(f"{OPERATIONS}/Cancel", request, operation_pb2.Operation)
    print_operation(answer, as_json=as_json)


def wait_for(
    client: Client, begun: operation_pb2.Operation, *, timeout_s: float | None = None
) -> operation_pb2.Operation:
    """The operation once it is done, whichever way. Raises CommandFailed when the time is over."""
    give_up = None if timeout_s is None else time.monotonic() + timeout_s
    try:
        with Progress("importing", total_bytes=0) as progress:
            return _poll(client, begun, give_up=give_up, progress=progress)
    except (KeyboardInterrupt, CommandFailed) as error:
        if isinstance(error, KeyboardInterrupt) or error.code in AWAY:
            note(
                f"operation {begun.id} goes on: `imageledger operation wait {begun.id}` waits for it,"
                f" `imageledger operation cancel {begun.id}` ends it"
            )
        raise


def _poll(
    client: Client, begun: operation_pb2.Operation, *, give_up: float | None, progress: Progress
) -> operation_pb2.Operation:
    last, interval_s, answered = begun, POLL_INTERVAL_S, time.monotonic()
    while not last.done:
        left_s = interval_s if give_up is None else give_up - time.monotonic()
        if left_s <= 0:
            raise CommandFailed("DEADLINE_EXCEEDED", f"operation {begun.id} is not done within --timeout")
        time.sleep(min(interval_s, left_s))
        try:
            last, metadata = _asked(client, begun.id)
        except CommandFailed as error:
            if error.code not in AWAY or time.monotonic() - answered > PATIENCE_S:
                raise
        else:
            answered = time.monotonic()
            interval_s = _interval_s(metadata)
            _show(metadata, progress)
    return last


def _interval_s(metadata: Mapping[str, str | bytes]) -> float:
    text = str(metadata.get("x-operation-poll-interval", ""))
    return max(1.0, float(text)) if text.isascii() and text.isdecimal() else POLL_INTERVAL_S


def _show(metadata: Mapping[str, str | bytes], progress: Progress) -> None:
    done, slash, total = str(metadata.get("x-operation-progress", "")).partition("/")
    if slash and done.isdecimal():
        progress.total_bytes = int(total) if total.isdecimal() else 0
        progress.show(int(done))


def check_succeeded(done: operation_pb2.Operation) -> None:
    """Raises CommandFailed with the error of an operation that failed or was cancelled."""
    if done.HasField("error"):
        code = CODES.get(done.error.code, "UNKNOWN")
        remedy = f"operation: {done.id}"
        raise CommandFailed(code, shown(done.error.message), remedy=remedy)


def image_of(done: operation_pb2.Operation) -> image_pb2.Image:
    """The image in the response of an operation that succeeded. Raises CommandFailed."""
    check_succeeded(done)
    image = image_pb2.Image()
    if not done.response.Unpack(image):
        raise CommandFailed("INTERNAL", f"operation {done.id} is done and has no image in its response")
    return image


def print_operation(message: operation_pb2.Operation, *, as_json: bool) -> None:
    if as_json:
        print_json(document(message))
        return
    print_pairs(
        (
            ("id", message.id),
            ("description", message.description),
            resource_of(message),
            ("created_at", message.created_at.ToJsonString()),
            ("created_by", message.created_by),
            ("modified_at", message.modified_at.ToJsonString()),
            ("state", state_of(message)),
        )
    )


def resource_of(message: operation_pb2.Operation) -> tuple[str, str]:
    """Name and value of the id in an operation's metadata; both empty where there is none."""
    metadata: dict[str, str] = document(message).get("metadata", {})
    return next(((name, value) for name, value in metadata.items() if name != "@type"), ("", ""))


def state_of(message: operation_pb2.Operation) -> str:
    """How an operation stands, for people."""
    if not message.done:
        return "running"
    if message.HasField("error"):
        return f"{CODES.get(message.error.code, 'UNKNOWN')}: {message.error.message}"
    return "done"


def _asked(client: Client, operation_id: str) -> tuple[operation_pb2.Operation, Mapping[str, str | bytes]]:
    request = operation_service_pb2.GetOperationRequest(operation_id=operation_id)
    return client.call_with_metadata(f"{OPERATIONS}/Get", request, operation_pb2.Operation)
