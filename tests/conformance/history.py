"""Calls of imageledger.v1.HistoryService, as its tests make them."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.message import Message

from eventstore.event import Event, decode
from server.gen.imageledger.v1 import history_service_pb2 as pb
from server.gen.pool import POOL
from tests.conformance.api import Api, Code, as_of, refusal_of
from tests.harness import Metadata

HISTORY = "imageledger.v1.HistoryService"


def stream(api: Api, method: str, request: Message, metadata: Metadata = ()) -> tuple[list[Any], Any]:
    """The answers of a stream, and the call with its metadata."""
    answer = getattr(pb, f"{method}Response")
    stub = api.channel.unary_stream(
        f"/{HISTORY}/{method}", type(request).SerializeToString, answer.FromString
    )
    call = stub(request, metadata=api.metadata(metadata), timeout=30)
    return list(call), call


def events(api: Api, metadata: Metadata = (), **fields: Any) -> list[Event]:
    answers, _ = stream(api, "ReadEvents", pb.ReadEventsRequest(**fields), metadata)
    return [decode(event.body) for answer in answers for event in answer.events]


def document(message: Message) -> dict[str, Any]:
    made: dict[str, Any] = json_format.MessageToDict(
        message, preserving_proto_field_name=True, descriptor_pool=POOL
    )
    return made


def at(position: int) -> dict[str, int]:
    return {"position": position}


def got(api: Api, image_id: str, position: int) -> dict[str, Any]:
    """The image as of then, empty where it was not there."""
    try:
        return document(api.get(image_id, as_of(position)))
    except grpc.RpcError as error:
        return _not_found(error, {})


def latest(api: Api, folder: str, family: str, position: int) -> list[str]:
    """The id of the family's latest image as of then, if there was one."""
    try:
        return [api.latest(folder, family, as_of(position)).id]
    except grpc.RpcError as error:
        return _not_found(error, [])


def _not_found(error: grpc.RpcError, answer: Any) -> Any:
    if refusal_of(error).code != Code.NOT_FOUND:
        raise error
    return answer
