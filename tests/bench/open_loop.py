"""A caller in a process of its own whose calls begin on schedule, whatever has become of those before.

`python -m tests.bench.open_loop ADDRESS METHOD RATE SECONDS < requests`: a request a line, in hex, asked in
turn.
Prints one JSON document; a latency is counted from when the call should have begun, so that a server that
stands still is not forgiven the calls that waited for it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import suppress

import grpc

DRAIN_S = 30.0


async def main(address: str, method: str, rate: float, seconds: float, requests: list[bytes]) -> None:
    latencies: list[float] = []
    failed = 0

    async def ask(request: bytes, due: float) -> None:
        nonlocal failed
        try:
            await call(request, metadata=(("authorization", "Bearer local"),), timeout=DRAIN_S)
            latencies.append(time.perf_counter() - due)
        except grpc.RpcError:
            failed += 1

    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(method)
        await call(requests[0], metadata=(("authorization", "Bearer local"),))
        begun = time.perf_counter()
        tasks = []
        for number in range(int(rate * seconds)):
            due = begun + number / rate
            # The loop's timers are coarse, and being late is part of what is measured.
            if (early := due - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            tasks.append(asyncio.create_task(ask(requests[number % len(requests)], due)))
        await asyncio.gather(*tasks)
    latencies.sort()
    figures = {f"p{part}_us": latencies[len(latencies) * part // 100] * 1e6 for part in (50, 99)}
    print(json.dumps({"calls": len(latencies), "failed": failed, **figures}))


if __name__ == "__main__":
    with suppress(ImportError):
        import uvloop

        uvloop.install()
    lines = [bytes.fromhex(line) for line in sys.stdin.read().split()]
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]), lines))
