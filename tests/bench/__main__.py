"""`python -m tests.bench [NAME…]`: how far each rpc is from what the wire alone costs, as a table of ratios.

Ours and its limit run in turn, in at least five rounds of one process; a ratio is taken within a round, so
that a machine that slows down slows both. Nothing here is asserted: the figures are for people.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

import grpc

from tests.bench import rebuild
from tests.bench.calls import MEASURES, Measure, prepared
from tests.bench.load import requests_a_second

Ratios = dict[str, list[float]]


def main() -> None:
    options = arguments()
    chosen = [name for name in (*MEASURES, "rebuild") if not options.names or name in options.names]
    unknown = set(options.names) - {*MEASURES, "rebuild"}
    if unknown:
        sys.exit(
            f"error: no measure is called {', '.join(sorted(unknown))};"
            f" there are {', '.join(MEASURES)}, rebuild"
        )
    print(
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()},"
        f" grpcio {grpc.__version__}"
    )
    print(
        f"{options.rounds} rounds, ours and its limit in turn; beside them the requests a second of the last"
    )
    print(f"{'measure':<22}{'against':<12}{'min':>7}{'median':>8}{'max':>7}{'reach':>7}  last round")
    calls = [MEASURES[name] for name in chosen if name in MEASURES]
    if calls:
        measure_calls(calls, rounds=options.rounds, scale=options.scale)
    if "rebuild" in chosen:
        measure_rebuild(rounds=options.rounds, events=options.events)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"{', '.join(MEASURES)}, rebuild; all without"
    )
    parser.add_argument("--rounds", type=int, default=5, help="at least 5 for a figure worth quoting")
    parser.add_argument("--scale", type=float, default=1.0, help="more or fewer requests a round")
    parser.add_argument("--events", type=int, default=100_000, help="events in the log that is rebuilt")
    return parser.parse_args()


def measure_calls(measures: Iterable[Measure], *, rounds: int, scale: float) -> None:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="imageledger-bench-")))
        ready = [prepared(measure, directory, stack) for measure in measures]
        equal: Ratios = {measure.name: [] for measure, _ in ready}
        bare: Ratios = {measure.name: [] for measure, _ in ready}
        rates: dict[str, tuple[float, float, float]] = {}
        for _ in range(rounds):
            for measure, targets in ready:
                count = max(int(measure.requests * scale), 128)
                ours, echo, bare_echo = (requests_a_second(target, count) for target in targets)
                equal[measure.name].append(ours / echo)
                bare[measure.name].append(ours / bare_echo)
                rates[measure.name] = (ours, echo, bare_echo)
        for measure, _ in ready:
            ours, echo, bare_echo = rates[measure.name]
            row(measure.name, "equal echo", equal[measure.name], measure.reach, f"{ours:.0f} / {echo:.0f}")
            row("", "bare echo", bare[measure.name], None, f"{ours:.0f} / {bare_echo:.0f}")


def measure_rebuild(*, rounds: int, events: int) -> None:
    with tempfile.TemporaryDirectory(prefix="imageledger-bench-") as directory:
        ratios, ours, raw = rebuild.ratios(Path(directory), events=events, rounds=rounds)
    row("rebuild", "raw insert", ratios, 0.45, f"{ours:.0f} / {raw:.0f} events/s")


def row(name: str, against: str, ratios: list[float], reach: float | None, last: str) -> None:
    figures: list[Callable[[list[float]], float]] = [min, statistics.median, max]
    numbers = "".join(f"{figure(ratios):>{7 + (i == 1)}.2f}" for i, figure in enumerate(figures))
    print(f"{name:<22}{against:<12}{numbers}{'' if reach is None else reach:>7}  {last}", flush=True)


if __name__ == "__main__":
    main()
