"""`python -m tests.bench.latency [NAME…]`: the p99 of Get at 30 % load while something else goes on.

The load is open-loop: 30 % of what h2load gets out of this server in the same run. Alone and disturbed take
turns; a ratio is one of neighbours.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from google.protobuf.message import Message

from eventstore.reader import LogReader
from projections.store import ProjectionFiles, open_queries
from server.encode import image_frame
from server.gen.yandex.cloud.compute.v1 import image_service_pb2 as pb
from tests.bench.generate import generate
from tests.bench.load import Target, framed, requests_a_second
from tests.harness import IMAGES, Server, serving

SECONDS = 10.0
UPDATES_A_SECOND = 300
LOAD = 0.3
SCANNED = "scanned"


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="imageledger-bench-") as text:
        data = options.data or Path(text) / "data"
        if not (data / "log.db").exists():
            data.mkdir(parents=True, exist_ok=True)
            generate(data / "log.db", events=options.events, one_folder=SCANNED)
        with serving(data) as server:
            ids = some_images(data)
            rate = LOAD * capacity(server.address, ids[0], Path(text))
            print(f"Get at {rate:.0f} calls/s, open loop, {options.rounds} rounds of {SECONDS:.0f} s")
            print(f"{'while':<10}{'min':>7}{'median':>8}{'max':>7}  p99 alone / disturbed, median, ms")
            for name in options.names or DISTURBANCES:
                measure(name, server, ids, rate, options.rounds)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.latency", description=__doc__.splitlines()[0]
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="updates, rebuild, scan; all without")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--events", type=int, default=2_200_000, help="of which some 45 %% are images listed")
    parser.add_argument("--data", type=Path, help="a data directory made by an earlier run, or to be made")
    return parser.parse_args()


def measure(name: str, server: Server, ids: list[str], rate: float, rounds: int) -> None:
    alone: list[float] = []
    disturbed: list[float] = []
    for _ in range(rounds):
        alone.append(p99(server.address, ids, rate))
        with DISTURBANCES[name](server, ids):
            disturbed.append(p99(server.address, ids, rate))
    ratios = [after / before for before, after in zip(alone, disturbed, strict=True)]
    figures = f"{min(ratios):>7.2f}{statistics.median(ratios):>8.2f}{max(ratios):>7.2f}"
    medians = [statistics.median(times) / 1000 for times in (alone, disturbed)]
    print(f"{name:<10}{figures}  {medians[0]:.2f} / {medians[1]:.2f}", flush=True)


def p99(address: str, ids: list[str], rate: float) -> float:
    """In microseconds."""
    with open_loop(address, "Get", [pb.GetImageRequest(image_id=one) for one in ids], rate) as process:
        found = json.loads(process.communicate()[0])
    if found["failed"]:
        raise AssertionError(f"{found['failed']} calls failed")
    return float(found["p99_us"])


@contextmanager
def open_loop(
    address: str, method: str, requests: list[Message], rate: float, seconds: float = SECONDS
) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.bench.open_loop", address, f"/{IMAGES}/{method}"]
    command += [str(rate), str(seconds)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    if process.stdin is None:
        raise AssertionError("no stdin")
    process.stdin.write("\n".join(request.SerializeToString().hex() for request in requests))
    process.stdin.close()
    process.stdin = None
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


@contextmanager
def updates(server: Server, ids: list[str]) -> Iterator[None]:
    requests: list[Message] = [
        pb.UpdateImageRequest(image_id=one, update_mask={"paths": ["description"]}, description="new")
        for one in ids[:200]
    ]
    with open_loop(server.address, "Update", requests, UPDATES_A_SECOND, 10 * SECONDS):
        yield


@contextmanager
def rebuild(server: Server, ids: list[str]) -> Iterator[None]:
    command = [sys.executable, "-m", "tools.cli", "rebuild", "--online", "--endpoint", server.address]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
        if process.poll() is not None:
            raise AssertionError("the rebuild ended before the measure did: take a longer log")
    finally:
        process.terminate()
        process.wait()


@contextmanager
def scan(server: Server, ids: list[str]) -> Iterator[None]:
    """Lists that look at every image of the folder and find none, one after the other."""
    request = pb.ListImagesRequest(folder_id=SCANNED, filter='created_at = "1999-01-01T00:00:00Z"')
    source = (
        "import sys, grpc\n"
        "channel = grpc.insecure_channel(sys.argv[1])\n"
        "ask = channel.unary_unary(sys.argv[2])\n"
        "while True: ask(bytes.fromhex(sys.argv[3]), metadata=(('authorization', 'Bearer local'),))\n"
    )
    command = [sys.executable, "-c", source, server.address, f"/{IMAGES}/List"]
    process = subprocess.Popen([*command, request.SerializeToString().hex()])
    try:
        yield
        if process.poll() is not None:
            raise AssertionError("the scan failed")
    finally:
        process.kill()
        process.wait()


DISTURBANCES: dict[str, Callable[[Server, list[str]], AbstractContextManager[None]]] = {
    "updates": updates,
    "rebuild": rebuild,
    "scan": scan,
}


def some_images(data: Path, *, count: int = 2000) -> list[str]:
    """Ids from all over the log."""
    path = ProjectionFiles(data).current()
    if path is None:
        raise AssertionError("there is no projection")
    queries = open_queries(path, encode=image_frame)
    found: list[str] = []
    try:
        with LogReader.open(data / "log.db") as log:
            step = max(1, log.head() // (count * 4))
            for position in range(2, log.head(), step):
                event = log.event(position)
                if event.resource_id is None or len(found) == count:
                    continue
                try:
                    queries.image(event.resource_id)
                except Exception:
                    continue
                found.append(event.resource_id)
    finally:
        queries.close()
    return list(dict.fromkeys(found))


def capacity(address: str, image_id: str, directory: Path) -> float:
    body = framed(pb.GetImageRequest(image_id=image_id).SerializeToString(), directory / "request")
    target = Target(address, f"/{IMAGES}/Get", body, {"authorization": "Bearer local"})
    return statistics.median(requests_a_second(target, 6000) for _ in range(3))


if __name__ == "__main__":
    main()
