"""Calls to a server: a small client over one gRPC channel, and the options of every client command."""

from __future__ import annotations

import functools
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar, assert_never

import click
import grpc
from google.protobuf.message import DecodeError, Message

from projections.moments import AtHead, AtPosition, AtTime, Moment, format_time
from server.config import ConfigInvalid, is_loopback, split_address
from server.gen.google.rpc import error_details_pb2, status_pb2
from server.status import DETAILS_KEY
from tools.errors import CommandFailed
from tools.moments import moment_option
from tools.options import Command, option
from tools.output import shown

UNARY_TIMEOUT_S = 60.0
PAGE_SIZE_MAX = 1000
IMAGES = "yandex.cloud.compute.v1.ImageService"
OPERATIONS = "yandex.cloud.operation.OperationService"
SOURCES = "imageledger.v1.SourceService"
BLOBS = "imageledger.v1.BlobService"
STATUS = "imageledger.v1.StatusService"
HISTORY = "imageledger.v1.HistoryService"
PROOFS = "imageledger.v1.ProofService"

Metadata = tuple[tuple[str, str | bytes], ...]
Answer = TypeVar("Answer", bound=Message)
Item = TypeVar("Item")

# What gRPC puts before the reason why a connection failed.
_NOISE = re.compile(r"^[A-Z_]+: (ipv[46]:\S+: )?")
REMEDIES = {
    "UNAUTHENTICATED": "give a token with --token; a server in development mode accepts `local`",
    "RESOURCE_EXHAUSTED": "try again later",
    "UNIMPLEMENTED": "the server is of another version, or no imageledger server",
    "INTERNAL": "the server's log says more, by the request id",
}


class CallFailed(CommandFailed):
    """A call that the server refused or that did not reach it. `fields` are those of the request at fault."""

    def __init__(
        self, code: str, message: str, *, remedy: str | None = None, fields: tuple[str, ...] = ()
    ) -> None:
        super().__init__(code, message, remedy=remedy)
        self.fields = fields


class Client:
    """Calls over one channel, each with the token and the metadata that it was made with.

    Nothing is retried: a repeated write may be a second one. Every failure is raised as CallFailed.
    """

    def __init__(self, endpoint: str, *, token: str, ca_cert: Path | None, metadata: Metadata = ()) -> None:
        """`ca_cert` is a PEM file of certificates to trust; with None the channel is plain text."""
        self.endpoint = endpoint
        self._has_tls = ca_cert is not None
        self._metadata: Metadata = (("authorization", f"Bearer {token}"), *metadata)
        host, _ = split_address(endpoint, option="--endpoint")
        # A proxy of the environment is not asked for what is on this machine.
        options = [("grpc.enable_http_proxy", 0)] if is_loopback(host) else []
        if ca_cert is None:
            self._channel = grpc.insecure_channel(endpoint, options)
        else:
            credentials = grpc.ssl_channel_credentials(_certificates(ca_cert))
            self._channel = grpc.secure_channel(endpoint, credentials, options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the channel and every call on it, from whatever thread."""
        self._channel.close()

    def call(
        self,
        method: str,
        request: Message,
        answer: type[Answer],
        *,
        timeout_s: float = UNARY_TIMEOUT_S,
        metadata: Metadata = (),
    ) -> Answer:
        """The answer of a unary call. `method` is `package.Service/Method`."""
        return self.call_with_metadata(method, request, answer, timeout_s=timeout_s, metadata=metadata)[0]

    def call_with_metadata(
        self,
        method: str,
        request: Message,
        answer: type[Answer],
        *,
        timeout_s: float = UNARY_TIMEOUT_S,
        metadata: Metadata = (),
    ) -> tuple[Answer, dict[str, str | bytes]]:
        """The answer of a unary call, and the initial and trailing metadata that came with it."""
        stub = self._channel.unary_unary(f"/{method}", _bytes, answer.FromString)
        sent = (*self._metadata, *metadata)
        try:
            message, call = stub.with_call(request, metadata=sent, timeout=timeout_s)
        except grpc.RpcError as error:
            raise self._failed(error) from error
        return message, {**dict(call.initial_metadata() or ()), **dict(call.trailing_metadata() or ())}

    def download(self, method: str, request: Message, answer: type[Answer]) -> Iterator[Answer]:
        """The answers of a stream, which has no deadline."""
        stub = self._channel.unary_stream(f"/{method}", _bytes, answer.FromString)
        try:
            yield from stub(request, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._failed(error) from error

    def upload(self, method: str, requests: Iterable[Message], answer: type[Answer]) -> Answer:
        """The answer to a stream of requests. What making the requests raises is raised here."""
        stub = self._channel.stream_unary(f"/{method}", _bytes, answer.FromString)
        failures: list[OSError] = []

        def parts() -> Iterator[Message]:
            try:
                yield from requests
            except OSError as error:
                # gRPC iterates in a thread of its own, and would only say that it could not.
                failures.append(error)
                raise grpc.RpcError from error

        try:
            made: Answer = stub(parts(), metadata=self._metadata)
        except grpc.RpcError as error:
            if failures:
                raise failures[0] from None
            raise self._failed(error) from error
        return made

    def _failed(self, error: grpc.RpcError) -> CallFailed:
        code, text = _code(error), shown(str(_of(error, "details") or ""))
        details = _details(error)
        if details is not None:
            return _refused(code, text, details)
        if code == "UNAVAILABLE":
            return self._unreachable(text)
        if code == "DEADLINE_EXCEEDED":
            text = f"{self.endpoint} did not answer in time"
        return CallFailed(code, text or "the call failed", remedy=REMEDIES.get(code))

    def _unreachable(self, text: str) -> CallFailed:
        _, _, last = text.rpartition("last error: ")
        last = _NOISE.sub("", last).removesuffix(": OK")
        remedy = ["start the server (`imageledger serve`), or name another one with --endpoint HOST:PORT"]
        if self._has_tls:
            remedy.append("with --ca-cert the server must serve TLS with a certificate that FILE vouches for")
        else:
            remedy.append("if it serves TLS, give the certificate of its authority with --ca-cert FILE")
        return CallFailed("UNAVAILABLE", f"cannot reach {self.endpoint}: {last}", remedy="\n".join(remedy))


def pages(
    ask: Callable[[int, str], tuple[Sequence[Item], str]], *, limit: int | None = None
) -> Iterator[Sequence[Item]]:
    """Page after page of a list, at most `limit` items in all.

    `ask` is called with a page size and a page token, and gives the items and the next token.
    """
    token, left = "", limit
    while True:
        size = PAGE_SIZE_MAX if left is None else min(PAGE_SIZE_MAX, left)
        items, token = ask(size, token)
        yield items
        left = None if left is None else left - len(items)
        if not token or left == 0:
            return


def _bytes(message: Message) -> bytes:
    return message.SerializeToString()


def _certificates(path: Path) -> bytes:
    pem = path.read_bytes()
    if b"-----BEGIN CERTIFICATE-----" not in pem:
        raise CommandFailed(
            "INVALID_ARGUMENT",
            f"{path} holds no certificate",
            remedy="--ca-cert takes a PEM file, with `-----BEGIN CERTIFICATE-----` in it",
        )
    return pem


def _of(error: grpc.RpcError, name: str) -> Any:
    """What a call says of itself; the base class of gRPC's errors has no such methods."""
    method = getattr(error, name, None)
    return None if method is None else method()


def _code(error: grpc.RpcError) -> str:
    code = _of(error, "code")
    return code.name if isinstance(code, grpc.StatusCode) else "UNKNOWN"


def _details(error: grpc.RpcError) -> status_pb2.Status | None:
    """The google.rpc.Status that our server sends with every refusal; None where it was not our server."""
    trailing = dict(_of(error, "trailing_metadata") or ())
    raw = trailing.get(DETAILS_KEY)
    try:
        return status_pb2.Status.FromString(raw) if isinstance(raw, bytes) else None
    except DecodeError:
        return None


def _refused(code: str, text: str, status: status_pb2.Status) -> CallFailed:
    """What our server refused, with the broken rules, what to do, and the request id, a line each."""
    bad, info = error_details_pb2.BadRequest(), error_details_pb2.RequestInfo()
    for detail in status.details:
        detail.Unpack(bad)
        detail.Unpack(info)
    lines = [
        f"  {shown(violation.field)}: {shown(violation.description)}"
        for violation in bad.field_violations
        if violation.description != status.message
    ]
    if code in REMEDIES:
        lines.append(REMEDIES[code])
    if info.request_id:
        lines.append(f"request id: {shown(info.request_id)}")
    fields = tuple(violation.field for violation in bad.field_violations)
    return CallFailed(code, text, remedy="\n".join(lines) or None, fields=fields)


def _address(context: click.Context, parameter: click.Parameter, value: str) -> str:
    try:
        split_address(value, option="--endpoint")
    except ConfigInvalid as error:
        raise click.BadParameter(str(error), context, parameter) from None
    return value


def _token(context: click.Context, parameter: click.Parameter, value: str) -> str:
    if not value or not (value.isascii() and value.isprintable()):
        # The text itself is a secret and stays out of the message.
        raise click.BadParameter("a token is printable ASCII, and not empty", context, parameter)
    return value


def _as_of(moment: Moment) -> list[tuple[str, str | bytes]]:
    """The metadata that asks as of a moment; the head is what is answered anyway."""
    match moment:
        case AtPosition(position):
            return [("x-as-of", str(position))]
        case AtTime(ns):
            return [("x-as-of", format_time(ns))]
        case AtHead():
            return []
        case _:
            assert_never(moment)


_CLIENT = (
    option(
        "--endpoint",
        default="127.0.0.1:50051",
        metavar="HOST:PORT",
        callback=_address,
        help="The server to ask.",
    ),
    option(
        "--token",
        default="local",
        callback=_token,
        help="Who asks; a server in development mode accepts any.",
    ),
    option(
        "--ca-cert",
        type=click.Path(path_type=Path, dir_okay=False, exists=True),
        metavar="FILE",
        help="PEM file of certificates to trust; turns TLS on.",
    ),
)
_WRITER = (
    option("--reason", help="Why, in your words: kept with the event for ever."),
    option(
        "--idempotency-key",
        type=click.UUID,
        metavar="UUID",
        help="A repeat with the same key within 24 h answers the first one's operation.",
    ),
)
_READER = (moment_option("--as-of", help="A position, an RFC 3339 time, or head: answer as it was then."),)


def client_options(command: Command) -> Command:
    """The options of a command that calls a server; it gets a `client` instead of them."""
    return _with_client(command, _CLIENT)


def writer_options(command: Command) -> Command:
    """As `client_options`, of a command that changes something: with --reason and --idempotency-key."""
    return _with_client(command, (*_WRITER, *_CLIENT))


def reader_options(command: Command) -> Command:
    """As `client_options`, of a command that can be asked about the past: with --as-of."""
    return _with_client(command, (*_READER, *_CLIENT))


def _with_client(command: Command, options: Sequence[Callable[[Any], Any]]) -> Command:
    @functools.wraps(command)
    def run(
        *arguments: Any,
        endpoint: str,
        token: str,
        ca_cert: Path | None,
        reason: str | None = None,
        idempotency_key: uuid.UUID | None = None,
        as_of: Moment | None = None,
        **values: Any,
    ) -> Any:
        metadata: list[tuple[str, str | bytes]] = []
        if reason is not None:
            metadata.append(("x-change-reason-bin", reason.encode()))
        if idempotency_key is not None:
            metadata.append(("idempotency-key", str(idempotency_key)))
        if as_of is not None:
            metadata += _as_of(as_of)
        with Client(endpoint, token=token, ca_cert=ca_cert, metadata=tuple(metadata)) as client:
            return command(*arguments, client=client, **values)

    made: Any = run
    for add in reversed(options):
        made = add(made)
    return made  # type: ignore[no-any-return]
