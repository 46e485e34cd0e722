"""Loads the official package and ours in one process, in the order given, and exchanges messages.

python both_packages.py "" server.gen.        the official one first
python both_packages.py server.gen. ""        ours first
"""

import importlib
import sys
from typing import Any

MODULES = {
    "image": "yandex.cloud.compute.v1.image_pb2",
    "operation": "yandex.cloud.operation.operation_pb2",
    "timestamp": "google.protobuf.timestamp_pb2",
    "any": "google.protobuf.any_pb2",
}


def image(package: dict[str, Any]) -> Any:
    made = package["image"].Image(
        id="fd8aaaaaaaaaaaaaaaaa",
        folder_id="standard-images",
        name="web",
        labels={"a": "b"},
        product_ids=["p1", "p2"],
        storage_size=1,
        min_disk_size=2**40,
        size=3,
        status="READY",
        os={"type": "WINDOWS", "nvidia": {"driver": "x"}},
        pooled=True,
        hardware_generation={"legacy_features": {"pci_topology": "PCI_TOPOLOGY_V2"}},
        kms_key={"key_id": "k"},
    )
    made.created_at.FromNanoseconds(1_700_000_000_000_000_000)
    return made


def operation(package: dict[str, Any]) -> Any:
    made = package["operation"].Operation(id="op", done=True)
    made.response.Pack(image(package))
    return made


def exchange(sender: dict[str, Any], receiver: dict[str, Any]) -> None:
    for make in (image, operation):
        sent, expected = make(sender), make(receiver)
        assert type(sent) is not type(expected)
        got = type(expected).FromString(sent.SerializeToString())
        assert got == expected
        assert type(sent).FromString(got.SerializeToString()) == sent
    unpacked = receiver["image"].Image()
    received = receiver["operation"].Operation.FromString(operation(sender).SerializeToString())
    assert received.response.Unpack(unpacked)
    assert unpacked == image(receiver)


def main(first: str, second: str) -> None:
    one, other = (
        {short: importlib.import_module(prefix + name) for short, name in MODULES.items()}
        for prefix in (first, second)
    )
    assert one["timestamp"].Timestamp is not other["timestamp"].Timestamp
    exchange(one, other)
    exchange(other, one)


if __name__ == "__main__":
    main(*sys.argv[1:])
