"""POOL, the descriptor pool of everything under server.gen, and how generated modules enter it.

Not generated. The default pool and the top-level names `google` and `yandex` belong to an installed SDK,
whose files have the same names as ours; a pool of its own lets both live in one process.
"""

from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message_factory import GetMessageClass

POOL = DescriptorPool()


def add(serialized: bytes, namespace: dict[str, Any]) -> FileDescriptor:
    """The file in POOL; its messages, enums and extensions are put into `namespace`, a module's globals.

    What the file imports must be in POOL already. Raises TypeError if POOL has another file of this name.
    """
    file: FileDescriptor = POOL.AddSerializedFile(serialized)
    for message in file.message_types_by_name.values():
        _add_message(message, namespace)
    for enum in file.enum_types_by_name.values():
        _add_enum(enum, namespace)
    for extension in file.extensions_by_name.values():
        namespace[extension.name] = extension
        namespace[f"{extension.name.upper()}_FIELD_NUMBER"] = extension.number
    return file


def _add_message(message: Descriptor, namespace: dict[str, Any]) -> None:
    made = GetMessageClass(message)
    # For people: repr() of a class names its module.
    made.__module__ = namespace["__name__"]
    namespace[message.name] = made


def _add_enum(enum: EnumDescriptor, namespace: dict[str, Any]) -> None:
    namespace[enum.name] = EnumTypeWrapper(enum)
    for value in enum.values:
        namespace[value.name] = value.number
