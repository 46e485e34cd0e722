"""Load from h2load (nghttp2), which speaks gRPC well enough: 128 requests in flight over 8 connections."""

from __future__ import annotations

import contextlib
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

CONNECTIONS = 8
STREAMS = 16
RATE = re.compile(r"finished in [^,]+, ([0-9.]+) req/s")
FAILED = re.compile(r"(\d+) failed, (\d+) errored, (\d+) timeout")


@dataclass(frozen=True, slots=True)
class Target:
    """One rpc of one server, with the request that is sent again and again."""

    address: str
    method: str
    body: Path
    headers: Mapping[str, str]


def requests_a_second(target: Target, requests: int) -> float:
    """Measured by h2load. Raises AssertionError if a call failed on the way."""
    if shutil.which("h2load") is None:
        raise SystemExit(
            "error: UNAVAILABLE: h2load is not installed\ninstall it: apt-get install nghttp2-client"
        )
    command = ["h2load", "-n", str(requests), "-c", str(CONNECTIONS), "-m", str(STREAMS), "-p", "h2c"]
    for key, value in {"content-type": "application/grpc", "te": "trailers", **target.headers}.items():
        command += ["-H", f"{key}: {value}"]
    command += ["-d", str(target.body), f"http://{target.address}{target.method}"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rate, failed = RATE.search(output), FAILED.search(output)
    if rate is None or failed is None or any(int(count) for count in failed.groups()):
        raise AssertionError(output)
    return float(rate[1])


def framed(message: bytes, path: Path) -> Path:
    """A file with the message as gRPC frames it."""
    path.write_bytes(b"\0" + struct.pack(">I", len(message)) + message)
    return path


@contextlib.contextmanager
def echo(answer: bytes, directory: Path) -> Iterator[str]:
    """The address of an echo server with this answer."""
    path = directory / "answer"
    path.write_bytes(answer)
    command = [sys.executable, "-m", "tests.bench.echo", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        if process.stdout is None:
            raise AssertionError("no stdout")
        try:
            yield process.stdout.readline().removeprefix("listening on ").strip()
        finally:
            process.terminate()
