"""yandex.cloud.endpoint.ApiEndpointService: every service that a client looks for is here."""

from __future__ import annotations

from collections.abc import Callable

from projections.domain.refusals import NotFound
from server.call import Call
from server.gen.yandex.cloud.endpoint import api_endpoint_pb2, api_endpoint_service_pb2
from server.handlers import Rpc

SERVICE = "yandex.cloud.endpoint.ApiEndpointService"
ENDPOINTS = ("compute", "operation", "iam", "endpoint", "resource-manager", "vpc")


class ApiEndpointService:
    def __init__(self, address: Callable[[], str]) -> None:
        """`address` is HOST:PORT, known once the port is bound."""
        self._address = address

    def rpcs(self) -> dict[str, Rpc]:
        pb = api_endpoint_service_pb2
        return {
            f"{SERVICE}/Get": Rpc(pb.GetApiEndpointRequest, self.get, is_open=True),
            f"{SERVICE}/List": Rpc(pb.ListApiEndpointsRequest, self.list, is_open=True),
        }

    async def get(self, call: Call, request: api_endpoint_service_pb2.GetApiEndpointRequest) -> bytes:
        if request.api_endpoint_id not in ENDPOINTS:
            raise NotFound("Endpoint", request.api_endpoint_id)
        return self._endpoint(request.api_endpoint_id).SerializeToString()

    async def list(self, call: Call, request: api_endpoint_service_pb2.ListApiEndpointsRequest) -> bytes:
        endpoints = [self._endpoint(name) for name in ENDPOINTS]
        return api_endpoint_service_pb2.ListApiEndpointsResponse(endpoints=endpoints).SerializeToString()

    def _endpoint(self, name: str) -> api_endpoint_pb2.ApiEndpoint:
        return api_endpoint_pb2.ApiEndpoint(id=name, address=self._address())
