"""The largest events that the API lets anybody write: tiles have room for 65,535 bytes each."""

from __future__ import annotations

from pathlib import Path

from eventstore.event import encode
from eventstore.reader import LogReader
from eventstore.tiles import ENTRY_SIZE_MAX_BYTES
from tests.conformance.api import Api
from tests.harness import serving

# A character that takes four bytes, where any character is allowed.
WIDE = "\U0001f9fe"


def test_no_request_makes_an_event_of_half_the_room_of_an_entry_bundle(tmp_path: Path) -> None:
    """Every field as long as it may be; a longer one of each is refused, as test_api_requests.py shows."""
    prefix = "file:///srv/absent/"
    folder = WIDE * 50
    metadata = [("x-change-reason-bin", (WIDE * 256).encode()), ("x-client-request-id", "r" * 64)]
    metadata.append(("idempotency-key", "00000000-0000-4000-8000-000000000001"))
    labels = {f"k{number:02d}" + "k" * 60: "v" * 63 for number in range(64)}
    fields = {
        "name": "n" * 63,
        "description": WIDE * 256,
        "labels": labels,
        "family": "f" * 63,
        "product_ids": [WIDE * 48 + f"{number:02d}" for number in range(64)],
        "min_disk_size": 2**42,
    }
    with serving(tmp_path / "data", "--allow-source", prefix) as server:
        with Api(server.address, token="t" * 50) as api:
            uri = prefix + "/".join(["u" * 200] * 30)
            api.create(folder, metadata, uri=uri[:4095] + "u", **fields)
            image = api.image(folder, disk_id=api.disk(folder), **fields | {"name": "m" * 63})
            api.update(
                image.id,
                ["description", "labels"],
                [("x-change-reason-bin", (WIDE * 256).encode())],
                description=WIDE * 256,
                labels=labels,
            )
        sizes: dict[str, int] = {}
        with LogReader.open(server.data / "log.db") as log:
            for event in log.events():
                sizes[event.type] = max(len(encode(event)), sizes.get(event.type, 0))
    print(sizes)
    assert sizes["ImageCreationStarted"] > 25_000
    assert max(sizes.values()) < ENTRY_SIZE_MAX_BYTES // 2
