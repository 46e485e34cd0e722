"""The limit to measure against: a grpc.aio server that answers ready bytes and does nothing else.

`bare` sends no metadata of its own; `equal` reads the caller's and sends the three trailing keys that every
answer of ours has, so that both do the same work on the wire; `stream` is `equal` as a stream of one message.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc

from server.main import OPTIONS

TRAILING = (
    ("x-request-id", "00000000-0000-4000-8000-000000000000"),
    ("x-server-trace-id", "00000000-0000-4000-8000-000000000000"),
    ("x-log-position", "1234567"),
)


class Echo(grpc.GenericRpcHandler):
    def __init__(self, answer: bytes) -> None:
        async def bare(request: bytes, context: Any) -> bytes:
            return answer

        async def equal(request: bytes, context: Any) -> bytes:
            dict(context.invocation_metadata())
            context.set_trailing_metadata(TRAILING)
            return answer

        async def stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
            dict(context.invocation_metadata())
            yield answer
            context.set_trailing_metadata(TRAILING)

        self._handlers = {
            "/echo/stream": grpc.unary_stream_rpc_method_handler(stream),
            "/echo/bare": grpc.unary_unary_rpc_method_handler(bare),
            "/echo/equal": grpc.unary_unary_rpc_method_handler(equal),
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return self._handlers.get(handler_call_details.method)


async def main(answer: bytes) -> None:
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((Echo(answer),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"listening on 127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    with suppress(ImportError):
        import uvloop

        uvloop.install()
    asyncio.run(main(Path(sys.argv[1]).read_bytes()))
