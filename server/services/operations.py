"""yandex.cloud.operation.OperationService."""

from __future__ import annotations

from projections.domain.operation import CancelOperation
from projections.queries import Queries
from server.call import Call
from server.encode import operation_bytes
from server.gen.yandex.cloud.operation import operation_service_pb2 as pb
from server.handlers import Rpc
from server.importer import Importer
from server.moments import Moments

SERVICE = "yandex.cloud.operation.OperationService"
POLL_INTERVAL_S = 1


class OperationService:
    def __init__(self, *, queries: Queries, moments: Moments, importer: Importer) -> None:
        self._importer = importer
        self._queries = queries
        self._moments = moments

    def rpcs(self) -> dict[str, Rpc]:
        return {
            f"{SERVICE}/Get": Rpc(pb.GetOperationRequest, self.get, late_initial=True),
            f"{SERVICE}/Cancel": Rpc(pb.CancelOperationRequest, self.cancel, reads=False),
        }

    async def get(self, call: Call, request: pb.GetOperationRequest) -> bytes:
        at = await self._moments.position(call)
        view, call.position = self._queries.operation(request.operation_id, at=at)
        if not view.operation["done"]:
            call.initial.append(("x-operation-poll-interval", str(POLL_INTERVAL_S)))
            if at is None:
                call.trailing.append(("x-operation-progress", self._importer.progress(request.operation_id)))
        return operation_bytes(view)

    async def cancel(self, call: Call, request: pb.CancelOperationRequest) -> bytes:
        command = CancelOperation(asked=call.asked(operation_id=request.operation_id))
        written = await self._importer.cancel(command, deadline=call.deadline())
        call.position = written.position
        return operation_bytes(written.view)
