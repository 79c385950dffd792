"""Errors as users meet them: one class per meaning, and a word about what to do."""

import inspect
import re
from pathlib import Path

import grpc
import pytest
import trustme

import syncline
from support.scripted_server import Refuse, ScriptedServer, scripted_server, server_info
from syncline import errors


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        ("INVALID_ARGUMENT", "INVALID_REQUEST", syncline.InvalidArgument),
        ("INVALID_ARGUMENT", "RECORD_INVALID", syncline.InvalidRecords),
        ("INVALID_ARGUMENT", "LIMIT_EXCEEDED", syncline.LimitExceeded),
        ("INVALID_ARGUMENT", "SCHEMA_INVALID", syncline.SchemaInvalid),
        ("INVALID_ARGUMENT", "TOKEN_INVALID", syncline.TokenInvalid),
        ("INVALID_ARGUMENT", "A_REASON_OF_TOMORROW", syncline.InvalidArgument),
        ("UNAUTHENTICATED", "KEY_INVALID", syncline.NotAuthenticated),
        ("PERMISSION_DENIED", "PERMISSION_DENIED", syncline.PermissionDenied),
        ("PERMISSION_DENIED", "SESSION_INVALID", syncline.SessionInvalid),
        ("NOT_FOUND", "DATASET_NOT_FOUND", syncline.NotFound),
        ("ALREADY_EXISTS", "DATASET_EXISTS", syncline.AlreadyExists),
        ("FAILED_PRECONDITION", "SOURCE_DISABLED", syncline.SourceDisabled),
        ("FAILED_PRECONDITION", "IDENTITY_IN_USE", syncline.IdentityInUse),
        ("FAILED_PRECONDITION", "MASS_DELETE", syncline.MassDeleteRefused),
        ("FAILED_PRECONDITION", "SESSION_INCOMPLETE", syncline.FailedPrecondition),
        ("ABORTED", "ETAG_MISMATCH", syncline.EtagMismatch),
        ("ABORTED", "SESSION_CONFLICT", syncline.SessionConflict),
        ("ABORTED", "CONDITION_FAILED", syncline.ConditionFailed),
        ("OUT_OF_RANGE", "SEQUENCE_GAP", syncline.OutOfRange),
        ("RESOURCE_EXHAUSTED", "STORE_FULL", syncline.Overloaded),
        ("UNIMPLEMENTED", "NOT_OFFERED", syncline.NotOffered),
        ("UNAVAILABLE", "REVISION_NOT_REACHED", syncline.Unavailable),
        ("INTERNAL", "INTERNAL", syncline.ServerError),
    ],
)
async def test_g4_each_reason_has_its_class(
    scripted: ScriptedServer,
    client: syncline.Client,
    code: str,
    reason: str,
    kind: type[syncline.SynclineError],
) -> None:
    scripted.script("GetServerInfo", Refuse(code, reason, "said so", answer=42))

    with pytest.raises(syncline.SynclineError) as caught:
        await client.server_info()

    error = caught.value
    assert type(error) is kind
    assert (error.code, error.reason, dict(error.metadata)) == (code, reason, {"answer": "42"})
    assert "said so" in error.message
    unknown = code in {"UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL"}
    assert isinstance(error, syncline.OutcomeUnknown) is unknown
    assert isinstance(error, syncline.Rejected) is not unknown


async def test_fields_and_hints_travel(scripted: ScriptedServer, client: syncline.Client) -> None:
    scripted.script(
        "GetServerInfo",
        Refuse(
            "RESOURCE_EXHAUSTED",
            "OVERLOADED",
            retry_seconds=99.5,
            fields=[("update_mask", "names no field", "INVALID")],
        ),
    )

    with pytest.raises(syncline.Overloaded) as caught:
        await client.server_info()

    assert caught.value.retry_after_seconds == 99.5
    assert dict(caught.value.fields) == {"update_mask": "names no field"}
    assert caught.value.violations == ()


async def test_details_that_contradict_the_status_are_not_believed(
    scripted: ScriptedServer, client: syncline.Client
) -> None:
    """A proxy rewrote the code: grpc's own parser raises ValueError then."""
    scripted.script(
        "GetServerInfo", Refuse("PERMISSION_DENIED", "KEY_MISSING", details_code="UNAUTHENTICATED")
    )

    with pytest.raises(syncline.PermissionDenied) as caught:
        await client.server_info()

    assert caught.value.reason == ""


async def test_reasons_of_others_are_not_ours(scripted: ScriptedServer, client: syncline.Client) -> None:
    scripted.script("GetServerInfo", Refuse("PERMISSION_DENIED", "KEY_INVALID", domain="proxy.example"))

    with pytest.raises(syncline.PermissionDenied) as caught:
        await client.server_info()

    assert caught.value.reason == ""


def test_the_hierarchy_is_drawn_as_it_is() -> None:
    drawn: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"\s+((?:[ |]*\+-- )?)([A-Z]\w+)\s", line + " ")
        if not match or match[2] not in dir(errors):
            continue
        depth = line.index(match[2])
        above = [entry for entry in above if entry[0] < depth]
        drawn[match[2]] = above[-1][1] if above else "Exception"
        above.append((depth, match[2]))
    real = {
        name: kind.__bases__[0].__name__
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, Exception) and kind.__module__ == errors.__name__
    }

    assert drawn == real


# -- what to do when it does not work -----------------------------------------------------------------------


async def fail(address: str, **options: object) -> str:
    options.setdefault("key", "sl_test")
    options.setdefault("timeout_seconds", 3)
    async with syncline.connect(address, **options) as client:  # type: ignore[arg-type]
        with pytest.raises(syncline.SynclineError) as caught:
            await client.server_info()
    return str(caught.value)


async def test_server_that_is_down() -> None:
    async with scripted_server() as gone:
        pass

    said = await fail(gone.address)

    assert gone.address in said
    assert "syncline-server serve" in said


async def test_unix_socket_that_is_not_there(tmp_path: Path) -> None:
    assert "syncline-server serve" in await fail(f"unix:{tmp_path}/socket")


async def test_wrong_port_with_another_program(unused_http: str) -> None:
    assert "check the port" in await fail(unused_http)


@pytest.fixture
async def unused_http():
    """Something that speaks HTTP/1.1, as the metrics port does."""
    import asyncio

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read(1)
            writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    await server.wait_closed()


async def test_wrong_key_says_where_it_came_from(
    scripted: ScriptedServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scripted.script("GetServerInfo", Refuse("UNAUTHENTICATED", "KEY_INVALID", "the key is not known"))

    assert "the argument `key`" in await fail(scripted.address)

    monkeypatch.setenv("SYNCLINE_DATA", str(tmp_path))
    (tmp_path / "admin.key").write_text("sl_file\n")
    assert str(tmp_path / "admin.key") in await fail(scripted.address, key=None)

    monkeypatch.setenv("SYNCLINE_KEY", "sl_environment")
    assert "SYNCLINE_KEY" in await fail(scripted.address, key=None)
    assert [metadata["authorization"] for metadata in scripted.metadata] == [
        "Bearer sl_test",
        "Bearer sl_file",
        "Bearer sl_environment",
    ]


async def test_missing_key_says_how_to_give_one(scripted: ScriptedServer) -> None:
    scripted.script("GetServerInfo", Refuse("UNAUTHENTICATED", "KEY_MISSING", "no key"))

    said = await fail(scripted.address, key=None)

    assert all(word in said for word in ("key=", "SYNCLINE_KEY", "SYNCLINE_DATA", "admin.key"))
    assert "authorization" not in scripted.metadata[0]


async def test_call_that_the_server_does_not_know(scripted: ScriptedServer) -> None:
    assert "not a Syncline server, or an older one" in await fail(scripted.address)


# -- TLS ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def server_credentials(authority: trustme.CA, *, mutual: bool = False, name: str = "localhost"):
    certificate = authority.issue_cert(name)
    return grpc.ssl_server_credentials(
        [(certificate.private_key_pem.bytes(), certificate.cert_chain_pems[0].bytes())],
        root_certificates=authority.cert_pem.bytes() if mutual else None,
        require_client_auth=mutual,
    )


async def test_tls_and_mtls(authority: trustme.CA, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(authority.cert_pem.bytes())
    mine = authority.issue_cert("client@example.org")
    tls = syncline.Tls(
        ca=tmp_path / "ca.pem",
        certificate=mine.cert_chain_pems[0].bytes(),
        private_key=mine.private_key_pem.bytes(),
    )

    async with scripted_server("localhost:0", server_credentials(authority, mutual=True)) as scripted:
        scripted.script("GetServerInfo", server_info())
        async with syncline.connect(scripted.address, key="sl_test", tls=tls) as client:
            assert (await client.server_info()).store == "sqlite"
        said = await fail(scripted.address, tls=syncline.Tls(ca=tmp_path / "ca.pem"))

    assert "Tls(certificate=" in said


async def test_server_name(authority: trustme.CA) -> None:
    credentials = server_credentials(authority, name="books.example")
    ca = authority.cert_pem.bytes()
    async with scripted_server("localhost:0", credentials) as scripted:
        scripted.script("GetServerInfo", server_info())
        tls = syncline.Tls(ca=ca, server_name="books.example")
        async with syncline.connect(scripted.address, key="sl_test", tls=tls) as client:
            await client.server_info()
        assert "server_name" in await fail(scripted.address, tls=syncline.Tls(ca=ca))


async def test_authority_that_is_not_known(authority: trustme.CA) -> None:
    async with scripted_server("localhost:0", server_credentials(authority)) as scripted:
        assert "Tls(ca=" in await fail(scripted.address, tls=True)


async def test_plain_text_against_tls(authority: trustme.CA) -> None:
    async with scripted_server("localhost:0", server_credentials(authority)) as scripted:
        assert "tls=True" in await fail(scripted.address)


async def test_tls_against_plain_text(scripted: ScriptedServer) -> None:
    assert "if it speaks plain text, leave out tls=" in await fail(scripted.address, tls=True)


def test_half_a_certificate() -> None:
    with pytest.raises(ValueError, match="go together"):
        syncline.Tls(certificate=b"x").credentials()
