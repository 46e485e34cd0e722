"""A real server in a process of its own, and raw calls to it: what the larger tests stand on."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from server.gen.imageledger.v1 import source_service_pb2
from server.gen.yandex.cloud.compute.v1 import image_pb2
from server.gen.yandex.cloud.operation import operation_pb2

START_TIMEOUT_S = 30
CALL_TIMEOUT_S = 30
IMAGES = "yandex.cloud.compute.v1.ImageService"
OPERATIONS = "yandex.cloud.operation.OperationService"
SOURCES = "imageledger.v1.SourceService"
BLOBS = "imageledger.v1.BlobService"
STATUS = "imageledger.v1.StatusService"

Metadata = Sequence[tuple[str, str | bytes]]
Answer = TypeVar("Answer", bound=Message)


class Server:
    """`imageledger serve` on a free port of loopback. Start it again with the same data by `start()`."""

    # What is run instead of `imageledger`, for a test that plants a fault.
    program: Sequence[str] = (sys.executable, "-m", "tools.cli")

    def __init__(self, data: Path, *options: str, environment: dict[str, str] | None = None) -> None:
        self.data = data
        self.options = options
        self.environment = environment or {}
        self.address = ""
        self.stderr_path = data.parent / f"{data.name}.stderr"
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> Server:
        command = [*self.program, "serve", "--data", str(self.data)]
        command += ["--listen", "127.0.0.1:0", *self.options]
        with self.stderr_path.open("ab") as stderr:
            self.process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env={**os.environ, **self.environment},
            )
        killer = threading.Timer(START_TIMEOUT_S, self.process.kill)
        killer.start()
        line = self._stdout().readline()
        killer.cancel()
        if not line.startswith("listening on "):
            self.process.wait()
            raise AssertionError(f"the server did not start: {line!r}\n{self.stderr()}")
        self.address = line.removeprefix("listening on ").strip()
        return self

    def _stdout(self) -> Any:
        if self.process is None or self.process.stdout is None:
            raise AssertionError("the server was not started")
        return self.process.stdout

    def stderr(self) -> str:
        return self.stderr_path.read_text(errors="replace")

    def stop(self) -> int:
        """The exit code after SIGTERM."""
        return self._end(signal.SIGTERM)

    def kill(self) -> int:
        return self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> int:
        if self.process is None:
            return 0
        self.process.send_signal(number)
        code = self.process.wait(timeout=60)
        self._stdout().close()
        self.process = None
        return code


@contextlib.contextmanager
def serving(data: Path, *options: str) -> Iterator[Server]:
    server = Server(data, *options).start()
    try:
        yield server
    finally:
        server.stop()


class Client:
    """Raw calls over one channel, with a token; messages are those of server.gen."""

    def __init__(self, address: str, *, token: str | None = "local", credentials: Any = None) -> None:
        options = [("grpc.enable_retries", 0)]
        self.channel = (
            grpc.insecure_channel(address, options)
            if credentials is None
            else grpc.secure_channel(address, credentials, options)
        )
        self.token = token

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def metadata(self, extra: Metadata = ()) -> Metadata:
        own: Metadata = [("authorization", f"Bearer {self.token}")] if self.token is not None else []
        return [*own, *extra]

    def call(
        self,
        service: str,
        method: str,
        request: Message | bytes,
        answer: type[Answer],
        metadata: Metadata = (),
        timeout: float = CALL_TIMEOUT_S,
    ) -> Answer:
        """The answer of a unary call. Raises grpc.RpcError."""
        return self.full_call(service, method, request, answer, metadata, timeout)[0]

    def full_call(
        self,
        service: str,
        method: str,
        request: Message | bytes,
        answer: type[Answer],
        metadata: Metadata = (),
        timeout: float = CALL_TIMEOUT_S,
    ) -> tuple[Answer, Any]:
        """The answer of a unary call, and the call with its metadata."""
        stub = self.channel.unary_unary(f"/{service}/{method}", _bytes, answer.FromString)
        return stub.with_call(request, metadata=self.metadata(metadata), timeout=timeout)

    def upload(
        self,
        header: source_service_pb2.SourceHeader,
        chunks: Iterable[bytes],
        metadata: Metadata = (),
        timeout: float = CALL_TIMEOUT_S,
    ) -> source_service_pb2.Source:
        request = source_service_pb2.UploadSourceRequest
        stub = self.channel.stream_unary(f"/{SOURCES}/Upload", _bytes, source_service_pb2.Source.FromString)

        def parts() -> Iterator[Message]:
            yield request(header=header)
            for chunk in chunks:
                yield request(chunk=chunk)

        return stub(parts(), metadata=self.metadata(metadata), timeout=timeout)

    def disk(self, folder_id: str, *, size_bytes: int = 4096, name: str = "") -> str:
        """The id of a new raw disk of zeros."""
        header = source_service_pb2.SourceHeader(folder_id=folder_id, kind=source_service_pb2.DISK, name=name)
        return self.upload(header, [b"\0" * size_bytes]).id


def _bytes(request: Message | bytes) -> bytes:
    return request if isinstance(request, bytes) else request.SerializeToString()


def image_of(operation: operation_pb2.Operation) -> image_pb2.Image:
    """The image in a finished operation's response."""
    image = image_pb2.Image()
    if not operation.response.Unpack(image):
        raise AssertionError(f"no image in the response of {operation}")
    return image
