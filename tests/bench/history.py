"""`python -m tests.bench.history`: history against an echo of the same bytes, a diff against a smaller log,
and updates with watchers against updates without.

The logs are generated, which takes minutes for a million events; `--data` keeps them for the next run.
Each figure is a ratio of times within a round, all rounds in one process. Nothing here is asserted.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from google.protobuf.message import Message

from server.gen.imageledger.v1 import history_service_pb2 as pb
from server.gen.yandex.cloud.compute.v1 import image_service_pb2
from server.gen.yandex.cloud.operation import operation_pb2
from tests.bench.generate import generate
from tests.bench.load import Target, echo, framed, requests_a_second
from tests.harness import IMAGES, Client, Server, image_of

HISTORY = "imageledger.v1.HistoryService"
HEADERS = {"authorization": "Bearer local"}
VERSIONS = 1000
CHANGES = 100
WATCHERS = 20
UPDATES_A_SECOND = 300
WATCH_S = 5.0


@dataclass(frozen=True, slots=True)
class Stage:
    """A server with a log of some size, an image of VERSIONS versions, and a stretch with CHANGES changes."""

    address: str
    pid: int
    image_id: str
    before: int
    after: int


def main() -> None:
    options = arguments()
    with ExitStack() as stack:
        root = options.data or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="imageledger-")))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="imageledger-bench-")))
        large = stack.enter_context(staged(root, options.events))
        small = stack.enter_context(staged(root, options.events // 10))
        print(f"{'measure':<34}{'min':>7}{'median':>8}{'max':>7}  at most")
        for name, ours, limit, most in (
            ("ImageHistory, echo of its bytes", *against_echo(large, "ImageHistory", directory, stack), 3.0),
            ("Blame, echo of its bytes", *against_echo(large, "Blame", directory, stack), 3.0),
            ("Diff, the same in a tenth of a log", *diffs(large, small, directory), 3.0),
        ):
            report(name, [times(ours, limit, options.requests) for _ in range(options.rounds)], most)
        pairs = [watched(large) for _ in range(options.rounds)]
        report(f"latency of an Update, {WATCHERS} watchers", [latency for _, latency in pairs], 1.15)
        report(f"CPU of an Update, {WATCHERS} watchers", [cpu for cpu, _ in pairs])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.history")
    parser.add_argument("--events", type=int, default=100_000, help="events in the larger log")
    parser.add_argument("--data", type=Path, help="where logs are kept for the next run")
    parser.add_argument("--rounds", type=int, default=5, help="at least 5 for a figure worth quoting")
    parser.add_argument("--requests", type=int, default=1000, help="of each kind in a round")
    return parser.parse_args()


def report(name: str, ratios: list[float], most: float | None = None) -> None:
    figures = f"{min(ratios):>7.2f}{statistics.median(ratios):>8.2f}{max(ratios):>7.2f}"
    print(f"{name:<34}{figures}  {'' if most is None else f'{most:.2f}'}", flush=True)


def times(ours: Target, limit: Target, requests: int) -> float:
    """How many times as long ours takes."""
    return requests_a_second(limit, requests) / requests_a_second(ours, requests)


@contextmanager
def staged(root: Path, events: int) -> Iterator[Stage]:
    data = root / f"log-{events}"
    if not (data / "CURRENT").exists():
        data.mkdir(parents=True, exist_ok=True)
        generate(data / "log.db", events=events)
        # A start would build it, too, and take longer than a start is waited for.
        subprocess.run([sys.executable, "-m", "tools.cli", "rebuild", "--data", str(data)], check=True)
    server = Server(data).start()
    try:
        with Client(server.address) as client:
            yield stage(client, server)
    finally:
        server.stop()


def stage(client: Client, server: Server) -> Stage:
    if server.process is None:
        raise AssertionError("the server was not started")
    disk_id = client.disk("staged")
    request = image_service_pb2.CreateImageRequest(folder_id="staged", family="web", disk_id=disk_id)
    image_ids = [
        image_of(client.call(IMAGES, "Create", request, operation_pb2.Operation)).id for _ in range(CHANGES)
    ]
    for number in range(VERSIONS - 2):
        before = update(client, image_ids[0], number)
    for number, image_id in enumerate(image_ids):
        after = update(client, image_id, number)
    return Stage(server.address, server.process.pid, image_ids[0], before, after)


def update(client: Client, image_id: str, number: int) -> int:
    """The position of an Update's event."""
    request = image_service_pb2.UpdateImageRequest(
        image_id=image_id,
        update_mask={"paths": ["description"]},
        description=f"Nightly build of the base system, number {number}",
    )
    _, call = client.full_call(IMAGES, "Update", request, operation_pb2.Operation)
    return int(dict(call.trailing_metadata())["x-log-position"])


def against_echo(at: Stage, method: str, directory: Path, stack: ExitStack) -> tuple[Target, Target]:
    request = pb.ImageHistoryRequest(image_id=at.image_id)  # Of the same form as Blame's.
    body = framed(request.SerializeToString(), directory / f"{method}.request")
    messages = answers(at.address, method, request)
    print(f"{method}: {len(messages)} messages, {sum(map(len, messages))} bytes", file=sys.stderr)
    folder = directory / method
    folder.mkdir()
    address = stack.enter_context(echo(b"".join(messages), folder))
    path = "/echo/equal" if method == "Blame" else "/echo/stream"
    ours = Target(at.address, f"/{HISTORY}/{method}", body, HEADERS)
    return ours, Target(address, path, body, HEADERS)


def answers(address: str, method: str, request: Message) -> list[bytes]:
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_stream(f"/{HISTORY}/{method}")
        return list(call(request.SerializeToString(), metadata=tuple(HEADERS.items())))


def diffs(large: Stage, small: Stage, directory: Path) -> tuple[Target, Target]:
    targets = []
    for name, at in (("large", large), ("small", small)):
        request = pb.DiffRequest(from_moment={"position": at.before}, to_moment={"position": at.after})
        body = framed(request.SerializeToString(), directory / f"diff-{name}")
        targets.append(Target(at.address, f"/{HISTORY}/Diff", body, HEADERS))
    return targets[0], targets[1]


def watched(at: Stage) -> tuple[float, float]:
    """How many times as much an Update costs the server beside watchers, and as long it takes."""
    cpu, latency = steady(at)
    with watching(at.address):
        watched_cpu, watched_latency = steady(at)
    return watched_cpu / cpu, watched_latency / latency


@contextmanager
def watching(address: str) -> Iterator[None]:
    """WATCHERS watchers in a process of their own, all of them live."""
    command = [sys.executable, "-c", WATCHING, address, str(WATCHERS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as process:
        if process.stdout is None:
            raise AssertionError("no stdout")
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


WATCHING = """
import asyncio, sys, grpc
async def main(address, count):
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_stream("/imageledger.v1.HistoryService/Watch")
        calls = [call(b"", metadata=(("authorization", "Bearer local"),)) for _ in range(count)]
        for one in calls:
            await one.read()
        print("live", flush=True)
        async def drain(one):
            while await one.read() is not grpc.aio.EOF:
                pass
        await asyncio.gather(*map(drain, calls))
asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


def steady(at: Stage) -> tuple[float, float]:
    """Seconds of CPU of an Update, and its median latency, at UPDATES_A_SECOND."""
    with Client(at.address) as client:
        latencies: list[float] = []
        begun, cpu = time.monotonic(), cpu_seconds(at.pid)
        threads = [threading.Thread(target=_caller, args=(client, at, begun, n, latencies)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return (cpu_seconds(at.pid) - cpu) / len(latencies), statistics.median(latencies)


def _caller(client: Client, at: Stage, begun: float, number: int, latencies: list[float]) -> None:
    due = begun + number / UPDATES_A_SECOND
    while due < begun + WATCH_S:
        time.sleep(max(0.0, due - time.monotonic()))
        started = time.monotonic()
        update(client, at.image_id, number)
        latencies.append(time.monotonic() - started)
        due += 4 / UPDATES_A_SECOND


def cpu_seconds(pid: int) -> float:
    """What a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
