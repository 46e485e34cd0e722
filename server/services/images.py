"""yandex.cloud.compute.v1.ImageService: requests to questions and commands, answers as ready bytes."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from grpc import StatusCode

from eventstore.event import Value
from projections.domain.command import Asked
from projections.domain.image import UPDATABLE, CreateImage, DeleteImage, UpdateImage
from projections.filters import Condition, Order, equality, parse_filter, parse_order
from projections.listing import PAGE_BYTES_MAX, Listing
from projections.pages import Page, decode_page, encode_page, question
from projections.queries import Answer, Queries
from projections.rows import OperationView
from server import ids
from server.answers import Answers, Kept, Key
from server.call import Call
from server.encode import IMAGE_SERVICE, frame, operation_bytes, unframe
from server.gen.yandex.cloud.access import access_pb2
from server.gen.yandex.cloud.compute.v1 import image_service_pb2 as pb
from server.handlers import Rpc
from server.importer import Importer
from server.moments import Moments
from server.read_only import AnyWriter
from server.readers import Readers
from server.request import fingerprint
from server.status import CallRefused
from server.validate import fields
from server.writer import Written

PAGE_SIZE_DEFAULT = 100
SOURCES = ("image_id", "disk_id", "snapshot_id", "uri")


class ImageService:
    def __init__(
        self,
        *,
        queries: Queries,
        readers: Readers,
        writer: AnyWriter,
        moments: Moments,
        importer: Importer,
        answers: Answers,
        clock: Callable[[], int],
    ) -> None:
        self._importer = importer
        self._answers = answers
        self._queries = queries
        self._readers = readers
        self._writer = writer
        self._moments = moments
        self._clock = clock

    def rpcs(self) -> dict[str, Rpc]:
        return {
            f"{IMAGE_SERVICE}/Get": Rpc(pb.GetImageRequest, self.get),
            f"{IMAGE_SERVICE}/GetLatestByFamily": Rpc(pb.GetImageLatestByFamilyRequest, self.latest),
            f"{IMAGE_SERVICE}/List": Rpc(pb.ListImagesRequest, self.list),
            f"{IMAGE_SERVICE}/Create": Rpc(pb.CreateImageRequest, self.create, reads=False),
            f"{IMAGE_SERVICE}/Update": Rpc(pb.UpdateImageRequest, self.update, reads=False),
            f"{IMAGE_SERVICE}/Delete": Rpc(pb.DeleteImageRequest, self.delete, reads=False),
            f"{IMAGE_SERVICE}/ListOperations": Rpc(pb.ListImageOperationsRequest, self.operations),
            f"{IMAGE_SERVICE}/ListAccessBindings": Rpc(access_pb2.ListAccessBindingsRequest, not_here),
            f"{IMAGE_SERVICE}/SetAccessBindings": Rpc(access_pb2.SetAccessBindingsRequest, not_here),
            f"{IMAGE_SERVICE}/UpdateAccessBindings": Rpc(access_pb2.UpdateAccessBindingsRequest, not_here),
        }

    async def get(self, call: Call, request: pb.GetImageRequest) -> bytes:
        at = await self._moments.position(call) if call.asks_moment else None
        image_id = request.image_id
        key = (image_id, "Get", at)
        return self._kept(call, key) or self._read(call, key, lambda: self._queries.image(image_id, at=at))

    async def latest(self, call: Call, request: pb.GetImageLatestByFamilyRequest) -> bytes:
        at = await self._moments.position(call) if call.asks_moment else None
        folder_id, family = request.folder_id, request.family
        key = (folder_id, "GetLatestByFamily", family, at)
        return self._kept(call, key) or self._read(
            call, key, lambda: self._queries.latest(folder_id, family, at=at)
        )

    def _kept(self, call: Call, key: Key) -> bytes | None:
        """The answer where it is kept. A caller who names a position wants to read, and reads."""
        kept = None if call.names_position else self._answers.find(key)
        if kept is None:
            return None
        wire, call.position = kept
        return wire

    def _read(self, call: Call, key: Key, read: Callable[[], Answer]) -> bytes:
        """The image's bytes, read now and kept. The key ends with the moment that was asked about."""
        begun = self._answers.begin()
        framed, call.position = read()
        wire = unframe(framed)
        self._answers.keep(key, Kept(wire, call.position, key[-1] is not None), begun=begun)
        return wire

    async def list(self, call: Call, request: pb.ListImagesRequest) -> bytes:
        if request.page_token or call.asks_moment:
            return (await self._list(call, request)).wire
        key = (request.folder_id, "List", request.page_size, request.filter, request.order_by)
        kept = self._kept(call, key)
        if kept is not None:
            return kept
        begun = self._answers.begin()
        listed = await self._list(call, request)
        self._answers.keep(key, listed, begun=begun)
        return listed.wire

    async def _list(self, call: Call, request: pb.ListImagesRequest) -> Kept:
        conditions, order = parse_filter(request.filter), parse_order(request.order_by)

        def asked() -> bytes:
            return _question("List", request.folder_id, request.filter, request.order_by, call)

        page = decode_page(request.page_token, asked()) if request.page_token else None
        at = None if page is not None else await self._moments.position(call)
        limit = request.page_size or PAGE_SIZE_DEFAULT

        def ask(queries: Queries) -> Listing:
            return queries.images(
                request.folder_id, limit=limit, conditions=conditions, order=order, page=page, at=at
            )

        is_now = page is None and at is None
        if _is_bounded(conditions, order, is_now=is_now):
            listing = ask(self._queries)
        else:
            listing = await self._readers.run(ask, deadline=call.deadline())
        call.position = listing.position
        if listing.next_page is None:
            return Kept(listing.wire, listing.position)
        return Kept(listing.wire + _next_page(listing.next_page, asked()), listing.position)

    async def operations(self, call: Call, request: pb.ListImageOperationsRequest) -> bytes:
        asked = _question("ListOperations", request.image_id, "", "", call)
        page = decode_page(request.page_token, asked) if request.page_token else None
        at = None if page is not None else await self._moments.position(call)
        limit = request.page_size or PAGE_SIZE_DEFAULT

        def ask(queries: Queries) -> Kept:
            views, position = queries.operations(request.image_id, limit=limit, page=page, at=at)
            wires = _sized(views[:limit])
            more = len(wires) < len(views)
            first = str(views[len(wires) - 1].operation["first"])
            token = _next_page(Page(position, first), asked) if more else b""
            return Kept(b"".join(wires) + token, position)

        # Off the event loop: a page of operations is a page of images, each encoded anew.
        answer = await self._readers.run(ask, deadline=call.deadline())
        call.position = answer.position
        return answer.wire

    async def create(self, call: Call, request: pb.CreateImageRequest) -> bytes:
        location = self._importer.admit(request.uri) if request.uri else None
        if location is not None:
            # From here on nobody sees the query but the importer, which needs it.
            request.uri = location.shown()
        values = _created(fields(request))
        source_field = cast("str", request.WhichOneof("source"))
        command = CreateImage(
            asked=self._asked(call, lambda: fields(request)),
            image_id=self._new_id(ids.IMAGE),
            source_field=source_field,
            source_id=getattr(request, source_field),
            uri_had_query=location is not None and bool(location.query),
            given=tuple(values),
            folder_id=request.folder_id,
            name=request.name,
            description=request.description,
            labels=dict(request.labels),
            family=request.family,
            min_disk_size=request.min_disk_size,
            product_ids=tuple(request.product_ids),
            os=cast("Mapping[str, Value] | None", values.get("os")),
            pooled=request.pooled,
            hardware_generation=cast("Mapping[str, Value] | None", values.get("hardware_generation")),
        )
        if location is not None:
            return _answered(call, await self._importer.begin(command, location, deadline=call.deadline()))
        return _answered(call, await self._writer.submit(command, deadline=call.deadline()))

    async def update(self, call: Call, request: pb.UpdateImageRequest) -> bytes:
        mask = tuple(sorted(set(request.update_mask.paths)))
        asked = self._asked(call, lambda: fields(request, keep=mask))
        values = fields(request, keep=UPDATABLE)
        command = UpdateImage(asked=asked, image_id=request.image_id, mask=mask, values=values)
        return _answered(call, await self._writer.submit(command, deadline=call.deadline()))

    async def delete(self, call: Call, request: pb.DeleteImageRequest) -> bytes:
        command = DeleteImage(asked=self._asked(call, lambda: fields(request)), image_id=request.image_id)
        return _answered(call, await self._writer.submit(command, deadline=call.deadline()))

    def _asked(self, call: Call, request: Callable[[], Mapping[str, Value]]) -> Asked:
        """Who asks; the request's fields are looked at only where a key binds it to them."""
        return call.asked(
            operation_id=self._new_id(ids.OPERATION), fingerprint=lambda: fingerprint(request())
        )

    def _new_id(self, prefix: str) -> str:
        return ids.make(prefix, now_ns=self._clock(), random_bytes=secrets.token_bytes(ids.RANDOM_BYTES))


async def not_here(call: Call, request: Any) -> bytes:
    """Access bindings have no place in development mode, where every caller may do everything."""
    raise CallRefused(
        StatusCode.UNIMPLEMENTED, "Access bindings are not served by this version", reason="UNIMPLEMENTED"
    )


def _sized(views: Sequence[OperationView]) -> list[bytes]:
    """The framed operations that fit one answer; at least one."""
    wires: list[bytes] = []
    size = 0
    for view in views:
        wire = frame(operation_bytes(view))
        size += len(wire)
        if wires and size > PAGE_BYTES_MAX:
            break
        wires.append(wire)
    return wires


def _answered(call: Call, written: Written) -> bytes:
    call.position = written.position
    return operation_bytes(written.view)


def _created(values: dict[str, Value]) -> dict[str, Value]:
    """The fields that say something: an os or hardware_generation without content is left to be inherited."""
    os = dict(cast("Mapping[str, Value]", values.get("os", {})))
    if os.get("type") == "TYPE_UNSPECIFIED":
        del os["type"]
    hardware = dict(cast("Mapping[str, Value]", values.get("hardware_generation", {})))
    if hardware.get("legacy_features") == {}:
        hardware = {"legacy_features": {"pci_topology": "PCI_TOPOLOGY_V1"}}
    kept = {key: value for key, value in values.items() if key not in ("os", "hardware_generation")}
    return kept | ({"os": os} if os else {}) | ({"hardware_generation": hardware} if hardware else {})


def _question(method: str, subject: str, filter_text: str, order_by: str, call: Call) -> bytes:
    """What a page token is bound to. As-of is part of it, so a page cannot move to another moment."""
    return question(method, subject, filter_text, order_by, call.text("x-as-of") or "")


def _is_bounded(conditions: tuple[Condition, ...], order: Order, *, is_now: bool) -> bool:
    """Whether an index bounds the rows that a page has to read; of the past there is none by name."""
    if is_now and (equality(conditions, "id") or equality(conditions, "name")):
        return True
    return is_now and not conditions and order.field == "id"


def _next_page(page: Page, asked: bytes) -> bytes:
    """ListImagesResponse.next_page_token and ListImageOperationsResponse.next_page_token are field 2."""
    return frame(encode_page(page, asked).encode(), 2)
