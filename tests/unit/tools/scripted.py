"""A gRPC server that answers what a test tells it: what the real one says only while an import runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.message import Message

Unary = Callable[[bytes, Any], Message]
Stream = Callable[[bytes, Any], Iterator[Message]]


@contextmanager
def scripted(
    *, unary: dict[str, Unary] | None = None, stream: dict[str, Stream] | None = None
) -> Iterator[str]:
    """The address of a server of these methods, each named `package.Service/Method`."""
    handlers = {
        f"/{name}": grpc.unary_unary_rpc_method_handler(answer, response_serializer=_bytes)
        for name, answer in (unary or {}).items()
    }
    for name, answers in (stream or {}).items():
        handlers[f"/{name}"] = grpc.unary_stream_rpc_method_handler(answers, response_serializer=_bytes)

    class Handlers(grpc.GenericRpcHandler):
        def service(self, handler_call_details: Any) -> Any:
            return handlers.get(handler_call_details.method)

    server = grpc.server(ThreadPoolExecutor(4), handlers=[Handlers()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def _bytes(message: Message) -> bytes:
    return message.SerializeToString()
