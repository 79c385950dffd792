"""Addresses, keys and channels."""

from pathlib import Path

import pytest

import syncline
from syncline._transport import resolve


def target(address: str | list[str], **given: object) -> str:
    options = {"key": "k", "tls": None, "insecure": False} | given
    return resolve(address, **options).target  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:7420", "127.0.0.1:7420"),
        ("localhost", "localhost:7420"),
        (" db.example:1 ", "db.example:1"),
        ("[::1]", "[::1]:7420"),
        ("[::1]:9", "[::1]:9"),
        ("unix:/run/syncline", "unix:/run/syncline"),
        ("dns:///db.example:1", "dns:///db.example:1"),
        ("ipv4:127.0.0.1:1,127.0.0.1:2", "ipv4:127.0.0.1:1,127.0.0.1:2"),
        (["127.0.0.1:1", "127.0.0.1:2"], "127.0.0.1:1, 127.0.0.1:2"),
        ("a.example, b.example:1,[::1]", "a.example:7420, b.example:1, [::1]:7420"),
    ],
)
def test_addresses(address: str | list[str], expected: str) -> None:
    assert target(address) == expected


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("", "HOST:PORT"),
        ([], "needs an address"),
        ("http://127.0.0.1:7420", "without http://"),
        ("::1", "brackets"),
        ("host:port", "'port' is not a port"),
        ("host:0", "not a port"),
        ("host:70000", "not a port"),
        ("a:1,", "HOST:PORT"),
        (["a:1", "b:x"], "'x' is not a port"),
    ],
)
def test_wrong_addresses(address: str | list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        syncline.connect(address, key="k")


@pytest.mark.parametrize(
    ("address", "given", "expected"),
    [
        ("127.0.0.1:1", {}, False),
        ("localhost:1", {}, False),
        ("[::1]:1", {}, False),
        ("unix:/x", {}, False),
        ("dns:///localhost:1", {}, False),
        (["127.0.0.1:1", "127.0.0.2:2"], {}, False),
        ("db.example:1", {}, True),
        ("10.0.0.1:1", {}, True),
        ("dns:///db.example:1", {}, True),
        ("127.0.0.1:1", {"tls": True}, True),
        ("db.example:1", {"insecure": True}, False),
        ("db.example:1", {"insecure": True, "tls": syncline.Tls()}, True),
    ],
)
def test_keys_go_over_tls_unless_the_server_is_here(
    address: str, given: dict[str, object], expected: bool
) -> None:
    options = {"key": "k", "tls": None, "insecure": False} | given
    assert (resolve(address, **options).tls is not None) is expected  # type: ignore[arg-type]


def test_plain_text_to_another_machine_is_refused() -> None:
    with pytest.raises(ValueError, match="insecure=True"):
        syncline.connect("db.example", key="k", tls=False)


def test_key_argument_then_environment_then_admin_key_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def found(key: str | None = None, address: str = "127.0.0.1:1") -> str | None:
        return resolve(address, key=key, tls=None, insecure=False).key

    monkeypatch.delenv("SYNCLINE_DATA")
    monkeypatch.chdir(tmp_path)
    assert found() is None
    (tmp_path / "syncline-data").mkdir()
    (tmp_path / "syncline-data" / "admin.key").write_text("sl_default\n")
    assert found() == "sl_default"
    assert found(address="db.example") is None  # never sent elsewhere
    (tmp_path / "admin.key").write_text("sl_named\n")
    monkeypatch.setenv("SYNCLINE_DATA", str(tmp_path))
    assert found() == "sl_named"
    monkeypatch.setenv("SYNCLINE_KEY", "sl_environment")
    assert found() == "sl_environment"
    assert found(address="db.example") == "sl_environment"
    assert found(key=" sl_argument ") == "sl_argument"
    assert found(key="") is None


def test_secrets_do_not_show() -> None:
    endpoint = resolve(
        "127.0.0.1",
        key="sl_secret",
        tls=syncline.Tls(certificate=b"c", private_key=b"pk_secret"),
        insecure=False,
    )

    assert "secret" not in repr(endpoint)


def test_t99_keepalive_of_the_sdk() -> None:
    """T99: pings no more often than the server allows (its default: 20 s), and also on idle streams."""
    endpoint = resolve("127.0.0.1", key=None, tls=None, insecure=False)
    calls, streams = dict(endpoint.options(streams=False)), dict(endpoint.options(streams=True))

    for options in (calls, streams):
        assert options["grpc.keepalive_time_ms"] == 60_000
        assert options["grpc.keepalive_timeout_ms"] == 20_000
        assert options["grpc.http2.max_pings_without_data"] == 0
    assert streams["grpc.use_local_subchannel_pool"] == 1


async def test_client_is_opened_once() -> None:
    client = syncline.connect("127.0.0.1:1", key="k")
    async with client:
        with pytest.raises(RuntimeError, match="open already"):
            await client.__aenter__()
    with pytest.raises(RuntimeError, match="not open"):
        await client.server_info()
