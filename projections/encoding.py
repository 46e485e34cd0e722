"""How an image's ready bytes are made, and how to tell that they are made in another way now."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from .domain.command import Image

Encode = Callable[[Image], bytes]

# Every field is set in one of them, so that another way to write any of them shows.
SAMPLES: tuple[Image, ...] = (
    {
        "blob": {"format": "raw", "sha256": "ab" * 32},
        "born": 2,
        "created_at": 1_767_225_600,
        "description": "text",
        "family": "web",
        "folder_id": "folder",
        "hardware_generation": {"legacy_features": {"pci_topology": "PCI_TOPOLOGY_V2"}},
        "id": "image",
        "labels": {"a": "1", "b": ""},
        "min_disk_size": 8 * 1024 * 1024,
        "name": "web-1",
        "operation_id": "operation",
        "os": {"nvidia": {"driver": "550"}, "type": "WINDOWS"},
        "pooled": True,
        "product_ids": ["p2", "p1"],
        "size": 4 * 1024 * 1024,
        "source": {"disk_id": "disk"},
        "status": "READY",
        "storage_size": 4096,
        "uri_had_query": True,
    },
    {
        "blob": {},
        "born": 3,
        "created_at": 1,
        "description": "",
        "family": "",
        "folder_id": "folder",
        "hardware_generation": {"generation2_features": {"vtpm_enabled": True}},
        "id": "image",
        "labels": {},
        "min_disk_size": 0,
        "name": "",
        "operation_id": "operation",
        "os": {"type": "LINUX"},
        "pooled": False,
        "product_ids": [],
        "size": 0,
        "source": {"uri": "https://storage.example/x"},
        "status": "CREATING",
        "storage_size": 0,
        "uri_had_query": False,
    },
)


def fingerprint(encode: Encode) -> bytes:
    """SHA-256 of what `encode` makes of the samples: a projection with another one is built anew."""
    hashed = hashlib.sha256()
    for sample in SAMPLES:
        wire = encode(sample)
        hashed.update(len(wire).to_bytes(8, "big") + wire)
    return hashed.digest()
