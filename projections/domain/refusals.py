"""Why a command is refused: a caller's mistake, said with the thing, the rule and the value.

Each class carries data; the server's one table gives it a gRPC status.
"""

NAME_SHOWN_MAX = 100  # An id in a request may be of any length, and the text travels in a header.


class Refused(Exception):
    """A command that changes nothing. The text is safe to show to the caller."""


class NotFound(Refused):
    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f'{kind} "{name[:NAME_SHOWN_MAX]}" not found')
        self.kind = kind
        self.name = name


class NameTaken(Refused):
    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f'{kind} with name "{name}" already exists')
        self.kind = kind
        self.name = name


class SourceMissing(Refused):
    """What an image was to be made from is not there."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f'{kind} "{name[:NAME_SHOWN_MAX]}" not found')
        self.kind = kind
        self.name = name


class ImageBusy(Refused):
    """An image that an unfinished operation still owns."""

    def __init__(self, image_id: str, operation_id: str) -> None:
        super().__init__(
            f'Image "{image_id}" is being created by operation "{operation_id}": wait for it, or cancel it'
        )
        self.image_id = image_id
        self.operation_id = operation_id


class ValueRefused(Refused):
    """A value that only the current state shows to be wrong. `field` is the request's, in snake_case."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class KeyReused(Refused):
    def __init__(self, key: str, operation_id: str) -> None:
        super().__init__(
            f'Idempotency-Key "{key}" was used within the last 24 hours for another request'
            f' (operation "{operation_id}"): use a new key'
        )
        self.key = key
        self.operation_id = operation_id
