"""Prints what the named .proto files declare, as JSON. Run in the interpreter of whoever owns them:

python dump_descriptors.py "" yandex/cloud/compute/v1/image.proto …             the official ones
python dump_descriptors.py server.gen. yandex/cloud/compute/v1/image.proto …    ours
"""

import importlib
import json
import sys
from typing import Any


def declared(file: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for message in file.message_types_by_name.values():
        found.update(_message(message))
    for enum in file.enum_types_by_name.values():
        found.update(_enum(enum))
    for service in file.services_by_name.values():
        found[service.full_name] = {method.name: _method(method) for method in service.methods}
    return found


def _message(message: Any) -> dict[str, Any]:
    found = {message.full_name: {field.name: _field(field) for field in message.fields}}
    for nested in message.nested_types:
        found.update(_message(nested))
    for enum in message.enum_types:
        found.update(_enum(enum))
    return found


def _field(field: Any) -> dict[str, Any]:
    of = field.message_type or field.enum_type
    return {
        "number": field.number,
        "type": field.type,
        "of": of.full_name if of else "",
        "repeated": field.is_repeated,
        "packed": field.is_packed,
        "presence": field.has_presence,
        "oneof": field.containing_oneof.name if field.containing_oneof else "",
        "json": field.json_name,
    }


def _enum(enum: Any) -> dict[str, Any]:
    return {enum.full_name: {value.name: value.number for value in enum.values}}


def _method(method: Any) -> dict[str, Any]:
    return {
        "input": method.input_type.full_name,
        "output": method.output_type.full_name,
        "client_streaming": method.client_streaming,
        "server_streaming": method.server_streaming,
    }


def main(prefix: str, *names: str) -> None:
    made = {}
    for name in names:
        module = importlib.import_module(prefix + name.removesuffix(".proto").replace("/", ".") + "_pb2")
        if module.DESCRIPTOR.name != name:
            raise SystemExit(f"{name} calls itself {module.DESCRIPTOR.name}")
        made[name] = declared(module.DESCRIPTOR)
    json.dump(made, sys.stdout, indent=1)


if __name__ == "__main__":
    main(*sys.argv[1:])
