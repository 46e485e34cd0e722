"""Who asks, in development mode: every token names a subject, and none is kept."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2

from server.gen.imageledger.v1 import source_service_pb2, status_service_pb2
from server.gen.yandex.cloud.access import access_pb2
from server.gen.yandex.cloud.compute.v1 import image_service_pb2
from server.gen.yandex.cloud.endpoint import api_endpoint_pb2, api_endpoint_service_pb2
from server.gen.yandex.cloud.iam.v1 import iam_token_service_pb2
from server.gen.yandex.cloud.operation import operation_service_pb2
from server.identity import TokenRefused, Tokens
from tests.conformance.api import ENDPOINTS, HEALTH, IAM, Api, Code, refused
from tests.harness import BLOBS, IMAGES, OPERATIONS, SOURCES, STATUS, Server, serving

pytestmark = pytest.mark.usefixtures("quiet")

Source = source_service_pb2.Source


def subject_of(text: str) -> str:
    return f"dev-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def jwt(claims: object, header: object = {"alg": "PS256", "typ": "JWT"}) -> str:
    return f"{part(header)}.{part(claims)}.c2lnbmF0dXJl"


def who(server: Server, disk: Source, token: str | None) -> str:
    """Whom the server takes the holder of the token for."""
    with Api(server.address, token=token) as client:
        return client.create("identity", disk_id=disk.id).created_by


@pytest.mark.parametrize(
    "token", ["local", "t1.9euelZ", "y0_AgAAAA", "x" * 4000, "a.b.c", "il2.a.b", "a b c"]
)
def test_any_text_names_a_subject(server: Server, disk: Source, token: str) -> None:
    assert who(server, disk, token) == subject_of(token)


def test_a_jwt_names_its_issuer(server: Server, disk: Source) -> None:
    assert who(server, disk, jwt({"iss": "ajeservice", "aud": "anything"})) == "ajeservice"


@pytest.mark.parametrize(
    "token",
    [
        pytest.param(jwt({"iss": ""}), id="empty"),
        pytest.param(jwt({"iss": "x" * 51}), id="long"),
        pytest.param(jwt({"iss": "вася"}), id="not-ascii"),
        pytest.param(jwt({"iss": "a\nb"}), id="control"),
        pytest.param(jwt({"iss": 7}), id="number"),
        pytest.param(jwt({"sub": "a"}), id="none"),
        pytest.param(jwt([1]), id="no-claims"),
        pytest.param(jwt({"iss": "a"}, header=[]), id="no-header"),
        pytest.param(jwt("[" * 2000), id="text"),
        pytest.param(f"{part({'alg': 'a'})}.{base64.b64encode(b'[' * 3000).decode()}.x", id="deep"),
    ],
)
def test_a_jwt_without_a_usable_issuer_is_any_text(server: Server, disk: Source, token: str) -> None:
    assert who(server, disk, token) == subject_of(token)


def test_a_jwts_longest_issuer(server: Server, disk: Source) -> None:
    assert who(server, disk, jwt({"iss": "x" * 50})) == "x" * 50


# --- Without a token ---

NEEDS_TOKEN = [
    (IMAGES, "Get", image_service_pb2.GetImageRequest(image_id="i")),
    (IMAGES, "GetLatestByFamily", image_service_pb2.GetImageLatestByFamilyRequest(folder_id="f")),
    (IMAGES, "List", image_service_pb2.ListImagesRequest(folder_id="f")),
    (IMAGES, "Create", image_service_pb2.CreateImageRequest(folder_id="f", image_id="i")),
    (IMAGES, "Update", image_service_pb2.UpdateImageRequest(image_id="i")),
    (IMAGES, "Delete", image_service_pb2.DeleteImageRequest(image_id="i")),
    (IMAGES, "ListOperations", image_service_pb2.ListImageOperationsRequest(image_id="i")),
    (IMAGES, "ListAccessBindings", access_pb2.ListAccessBindingsRequest(resource_id="i")),
    (OPERATIONS, "Get", operation_service_pb2.GetOperationRequest(operation_id="o")),
    (OPERATIONS, "Cancel", operation_service_pb2.CancelOperationRequest(operation_id="o")),
    (IAM, "Revoke", iam_token_service_pb2.RevokeIamTokenRequest(iam_token="t")),
    (
        IAM,
        "CreateForServiceAccount",
        iam_token_service_pb2.CreateIamTokenForServiceAccountRequest(service_account_id="s"),
    ),
    (SOURCES, "List", source_service_pb2.ListSourcesRequest(folder_id="f")),
    (SOURCES, "Remove", source_service_pb2.RemoveSourceRequest(source_id="s")),
    (BLOBS, "Read", image_service_pb2.GetImageRequest(image_id="i")),
    (STATUS, "Get", status_service_pb2.GetStatusRequest()),
]
OPEN = [
    (ENDPOINTS, "List", api_endpoint_service_pb2.ListApiEndpointsRequest()),
    (ENDPOINTS, "Get", api_endpoint_service_pb2.GetApiEndpointRequest(api_endpoint_id="compute")),
    (IAM, "Create", iam_token_service_pb2.CreateIamTokenRequest(jwt="j")),
    (HEALTH, "Check", health_pb2.HealthCheckRequest()),
]


def named(rows: list[Any]) -> list[Any]:
    return [pytest.param(*row, id=f"{row[0].rpartition('.')[2]}-{row[1]}") for row in rows]


@pytest.fixture(scope="module")
def nobody(server: Server) -> Any:
    with Api(server.address, token=None) as client:
        yield client


@pytest.mark.parametrize(("service", "method", "request_message"), named(NEEDS_TOKEN))
def test_a_call_without_a_token(nobody: Api, service: str, method: str, request_message: Any) -> None:
    refusal = refused(lambda: _raw(nobody, service, method, request_message))

    assert refusal.code == Code.UNAUTHENTICATED
    assert refusal.message.startswith("The token is invalid")
    assert refusal.request_id == refusal.trailing["x-request-id"]


@pytest.mark.parametrize(("service", "method", "request_message"), named(OPEN))
def test_a_call_that_needs_none(nobody: Api, service: str, method: str, request_message: Any) -> None:
    assert _raw(nobody, service, method, request_message)


def _raw(client: Api, service: str, method: str, message: Any, header: str | None = None) -> list[bytes]:
    # As a stream, so that it serves for both kinds.
    stub = client.channel.unary_stream(f"/{service}/{method}", bytes, bytes)
    metadata = client.metadata(() if header is None else [("authorization", header)])
    return list(stub(message.SerializeToString(), metadata=metadata, timeout=10))


def test_an_upload_without_a_token(nobody: Api) -> None:
    header = source_service_pb2.SourceHeader(folder_id="f", kind="DISK")

    assert refused(lambda: nobody.upload(header, [bytes(512)])).code == Code.UNAUTHENTICATED


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic bG9jYWw6", "local", "Bearerlocal"])
def test_an_authorization_that_is_no_bearer_token(nobody: Api, header: str) -> None:
    request = image_service_pb2.ListImagesRequest(folder_id="f")

    assert refused(lambda: _raw(nobody, IMAGES, "List", request, header)).code == Code.UNAUTHENTICATED


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_is_read_in_any_case(nobody: Api, scheme: str) -> None:
    request = image_service_pb2.ListImagesRequest(folder_id="f")

    _raw(nobody, IMAGES, "List", request, f"{scheme} local")


# --- Tokens of ours ---


@pytest.mark.parametrize(
    ("identity", "subject"),
    [
        pytest.param({"yandex_passport_oauth_token": "y0_oauth"}, subject_of("y0_oauth"), id="oauth"),
        pytest.param({"jwt": jwt({"iss": "ajeservice"})}, "ajeservice", id="jwt"),
        pytest.param({"jwt": "no jwt"}, subject_of("no jwt"), id="text"),
        pytest.param({"jwt": "x" * 8000}, subject_of("x" * 8000), id="longest"),
    ],
)
def test_an_exchanged_token_names_the_same_subject(
    server: Server, nobody: Api, disk: Source, identity: dict[str, str], subject: str
) -> None:
    token = nobody.exchanged(**identity)

    assert token.startswith("il1.")
    assert len(token) <= 4096
    assert who(server, disk, token) == subject


def test_tokens_differ_each_time(nobody: Api) -> None:
    assert nobody.exchanged(jwt="j") != nobody.exchanged(jwt="j")


def changed_at(at: int) -> Callable[[str], str]:
    def change(token: str) -> str:
        at_from_start = at % len(token)
        letter = "A" if token[at_from_start] != "A" else "B"
        return token[:at_from_start] + letter + token[at_from_start + 1 :]

    return change


def last_bit(token: str) -> str:
    """The token with a spare bit of its base64 set: the same bytes in another text."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return token[:-1] + alphabet[alphabet.index(token[-1]) ^ 1]


TAMPERED: list[Any] = [
    pytest.param(changed_at(5), id="payload"),
    pytest.param(changed_at(-10), id="signature"),
    pytest.param(last_bit, id="spare-bit"),
    pytest.param(lambda token: token[:-1], id="cut"),
    pytest.param(lambda token: token + "A", id="longer"),
    pytest.param(lambda token: token + "=", id="padded"),
    pytest.param(lambda token: token + ".A", id="third-part"),
    pytest.param(lambda token: token.rpartition(".")[0] + ".", id="no-signature"),
    pytest.param(lambda token: token.rpartition(".")[0], id="one-part"),
    pytest.param(lambda token: "il1.", id="nothing"),
    pytest.param(lambda token: "il1..", id="two-nothings"),
    pytest.param(lambda token: "il1." + "A" * 3000, id="garbage"),
]


@pytest.mark.parametrize("tamper", TAMPERED)
def test_a_tampered_token(server: Server, nobody: Api, tamper: Callable[[str], str]) -> None:
    token = tamper(nobody.exchanged(jwt="j"))

    with Api(server.address, token=token) as client:
        refusal = refused(lambda: client.list("f"))

    assert (refusal.code, refusal.message) == (Code.UNAUTHENTICATED, "The token is invalid")


def test_a_revoked_token(server: Server, api: Api) -> None:
    token = api.exchanged(jwt=jwt({"iss": "leaver"}))

    assert api.revoke(token) == "leaver"
    for text in (token, last_bit(token)):
        with Api(server.address, token=text) as client:
            refusal = refused(lambda: client.list("f"))
        assert (refusal.code, refusal.message) == (Code.UNAUTHENTICATED, "The token is invalid")


def test_other_tokens_of_the_subject_go_on(server: Server, api: Api) -> None:
    first, second = (api.exchanged(jwt=jwt({"iss": "stayer"})) for _ in range(2))
    api.revoke(first)

    with Api(server.address, token=second) as client:
        client.list("f")


@pytest.mark.parametrize("text", ["local", "il1.a.b", "a.b", "ж"])
def test_only_tokens_of_ours_can_be_revoked(api: Api, text: str) -> None:
    refusal = refused(lambda: api.revoke(text))

    assert (refusal.code, refusal.message) == (Code.UNAUTHENTICATED, "The token is invalid")


def test_a_token_without_its_prefix_is_not_that_token(api: Api) -> None:
    refusal = refused(lambda: api.revoke(api.exchanged(jwt="j").removeprefix("il1.")))

    assert refusal.code == Code.UNAUTHENTICATED


@pytest.mark.parametrize("service", ["compute", "operation", "iam", "endpoint", "resource-manager", "vpc"])
def test_every_endpoint_is_this_server(server: Server, nobody: Api, service: str) -> None:
    listed = api_endpoint_service_pb2.ListApiEndpointsResponse
    answer = nobody.call(ENDPOINTS, "List", api_endpoint_service_pb2.ListApiEndpointsRequest(), listed)
    asked = api_endpoint_service_pb2.GetApiEndpointRequest(api_endpoint_id=service)
    endpoint = nobody.call(ENDPOINTS, "Get", asked, api_endpoint_pb2.ApiEndpoint)

    assert endpoint.address == server.address
    assert endpoint in answer.endpoints
    assert not answer.next_page_token


def test_an_endpoint_that_is_not_here(nobody: Api) -> None:
    asked = api_endpoint_service_pb2.GetApiEndpointRequest(api_endpoint_id="storage")

    refusal = refused(lambda: nobody.call(ENDPOINTS, "Get", asked, api_endpoint_pb2.ApiEndpoint))

    assert (refusal.code, refusal.message) == (Code.NOT_FOUND, 'Endpoint "storage" not found')


def test_a_torn_revocation_does_not_take_the_next_with_it(tmp_path: Path) -> None:
    revoked = tmp_path / "revoked"

    def tokens() -> Tokens:
        return Tokens(bytes(32), revoked_path=revoked, clock=lambda: 0)

    first, second = tokens().issue("a").token, tokens().issue("b").token
    tokens().revoke(first)
    revoked.write_bytes(revoked.read_bytes()[:-5])
    tokens().revoke(second)

    for token in (first, second):
        with pytest.raises(TokenRefused, match="The token is invalid"):
            tokens().subject(token)


def test_a_token_expires() -> None:
    now = [0]
    tokens = Tokens(bytes(32), revoked_path=Path("no-such-file"), clock=lambda: now[0])
    issued = tokens.issue("a")
    now[0] = issued.expires_at - 1
    assert tokens.subject(issued.token) == "a"
    now[0] += 1

    with pytest.raises(TokenRefused, match="The token has expired"):
        tokens.subject(issued.token)


def test_a_token_for_a_service_account(server: Server, api: Api, disk: Source) -> None:
    request = iam_token_service_pb2.CreateIamTokenForServiceAccountRequest(service_account_id="ajeaccount")
    answer = api.call(IAM, "CreateForServiceAccount", request, iam_token_service_pb2.CreateIamTokenResponse)

    assert who(server, disk, answer.iam_token) == "ajeaccount"


def test_tokens_and_revocations_live_through_a_restart_and_no_text_is_kept(tmp_path: Path) -> None:
    data = tmp_path / "data"
    secrets = ["y0_topsecret_oauth", jwt({"iss": "restarter", "nonce": "topsecret"}), "bearer-topsecret"]
    with serving(data) as before, Api(before.address, token=secrets[2]) as api:
        disk = api.disk("f")
        kept = api.exchanged(jwt=secrets[1])
        gone = api.exchanged(yandex_passport_oauth_token=secrets[0])
        api.revoke(gone)
        refused(lambda: api.revoke(secrets[0]))
        refused(lambda: api.create("f", [("idempotency-key", secrets[2])], disk_id=disk))
    with serving(data) as after:
        with Api(after.address, token=kept) as api:
            assert api.create("f", disk_id=disk).created_by == "restarter"
        with Api(after.address, token=gone) as api:
            assert refused(lambda: api.list("f")).message == "The token is invalid"

    written = b"".join(path.read_bytes() for path in data.rglob("*") if path.is_file())
    written += after.stderr_path.read_bytes()
    for secret in (*secrets, kept, gone, "topsecret"):
        assert secret.encode() not in written
