"""The gRPC server: addresses, TLS, limits of connections, health, and the services behind the edge."""

import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_reflection.v1alpha import reflection

from syncline_server.rpc.interceptors import Edge, EdgeServer

WRITES: Final = "syncline.writes"
"""Name under which the health service tells whether writes are accepted."""

_STOP_SECONDS: Final = 0.2
"""For what is open when all our calls have ended: health watchers, which would use up any time given."""

Service = tuple[Callable[[Any, Any], None], Any]
"""The generated function that adds a servicer to a server, and the servicer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Files in PEM form. They are read again when they change, so certificates are renewed without a restart."""

    cert: Path
    key: Path
    client_ca: Path | None = None
    """Set: clients need a certificate of these authorities."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """How the server meets the network."""

    addresses: Sequence[str]
    tls: Tls | None = None
    message_bytes: int = 6 << 20
    """Largest message that is received; larger ones are refused before they are in memory."""
    streams_per_connection: int = 1_000
    keepalive_seconds: float = 60.0
    keepalive_timeout_seconds: float = 20.0
    client_ping_seconds: float = 20.0
    connection_age_seconds: float = 0.0
    reflection: bool = False


class GrpcServer:
    """A server that listens. Made by ``grpc_server``."""

    def __init__(self, server: grpc.aio.Server, health: HealthServicer, addresses: Sequence[str]) -> None:
        self.addresses = addresses
        """Where it listens, with the ports that were chosen for port 0."""
        self._server = server
        self._health = health

    async def tell_writable(self, writable: bool) -> None:
        """Tell health checks whether writes are accepted; reads and streams go on."""
        await self._health.set(
            WRITES, HealthCheckResponse.SERVING if writable else HealthCheckResponse.NOT_SERVING
        )

    async def tell_leaving(self) -> None:
        """Tell health checks, for good, that this server is about to go."""
        await self._health.enter_graceful_shutdown()

    async def stop(self) -> None:
        """Close what is still open, and every connection."""
        await self._server.stop(_STOP_SECONDS)


@asynccontextmanager
async def grpc_server(
    edge: Edge, services: Sequence[Service], settings: ServerSettings
) -> AsyncIterator[GrpcServer]:
    """Listen while the block lasts. Raises OSError when it cannot, or a TLS file cannot be read."""
    server = grpc.aio.server(options=_options(settings))
    registry = _Names(EdgeServer(edge, server))
    for add, servicer in services:
        add(servicer, registry)
    health = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    for name in (*registry.names, WRITES):
        await health.set(name, HealthCheckResponse.SERVING)
    if settings.reflection:
        reflection.enable_server_reflection(
            (*registry.names, "grpc.health.v1.Health", reflection.SERVICE_NAME), server
        )
    addresses = [_listen(server, address, settings.tls) for address in settings.addresses]
    await server.start()
    running = GrpcServer(server, health, addresses)
    try:
        yield running
    finally:
        await running.stop()


class _Names:
    """Passes services on, and remembers their names."""

    def __init__(self, server: EdgeServer) -> None:
        self.names: list[str] = []
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        self.names.append(service)
        self._server.add_registered_method_handlers(service, handlers)


def _options(settings: ServerSettings) -> list[tuple[str, int]]:
    # The probing of bandwidth (grpc.http2.bdp_probe) stays on: here it governs what is received, and pushes over
    # long distances need it. How much a subscriber that does not read may have on its way is the client's to
    # say; what is sent ran at the same speed with it and without (256 KiB frames, 350 to 870 MiB/s).
    options = [
        ("grpc.max_receive_message_length", settings.message_bytes),
        ("grpc.max_send_message_length", -1),  # what is sent is bounded by pages and by what was received
        ("grpc.max_concurrent_streams", settings.streams_per_connection),
        ("grpc.max_metadata_size", 8 << 10),
        # The dead-peer detector: a stopped or unplugged subscriber is gone after the sum of the two. What ends
        # the connection is the ping's own time-out (grpcio 1.85, measured; alone it would be a minute).
        ("grpc.keepalive_time_ms", _ms(settings.keepalive_seconds)),
        ("grpc.keepalive_timeout_ms", _ms(settings.keepalive_timeout_seconds)),
        ("grpc.http2.ping_timeout_ms", _ms(settings.keepalive_timeout_seconds)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", _ms(settings.client_ping_seconds)),
        ("grpc.http2.max_ping_strikes", 2),
        ("grpc.so_reuseport", 0),  # a second server on the port must fail, not take half of the connections
    ]
    if settings.connection_age_seconds:
        options.append(("grpc.max_connection_age_ms", _ms(settings.connection_age_seconds)))
        options.append(("grpc.max_connection_age_grace_ms", 60_000))
    return options


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _listen(server: grpc.aio.Server, address: str, tls: Tls | None) -> str:
    try:
        if tls is None or address.startswith("unix:"):
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, _credentials(tls))
    except RuntimeError:
        if tls is not None and (wrong := _wrong_with(tls)):  # gRPC does not say which of them it is
            raise OSError(f"cannot listen on {address}: {wrong}") from None
        raise OSError(
            f"cannot listen on {address}: it is in use, or not an address of this machine; "
            "stop what is using it, or choose another with --listen"
        ) from None
    if address.startswith("unix:"):
        return address
    return f"{address.rpartition(':')[0]}:{port}"


def _wrong_with(tls: Tls) -> str:
    """Why certificate and key cannot be used together, as OpenSSL sees it; empty where it sees nothing."""
    try:
        # Without a password OpenSSL would ask for one on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tls.cert, tls.key, password="")
    except ssl.SSLError as error:
        return f"certificate {tls.cert} and key {tls.key} cannot be used: {error.reason or 'no PEM files, or encrypted'}"
    return ""


def _credentials(tls: Tls) -> grpc.ServerCredentials:
    files = _TlsFiles(tls)
    changed: Any = files.read_if_changed  # may answer None, which the stubs do not know
    return grpc.dynamic_ssl_server_credentials(
        files.read(), changed, require_client_authentication=tls.client_ca is not None
    )


class _TlsFiles:
    """The certificate files, looked at before each handshake, on gRPC's own thread."""

    def __init__(self, tls: Tls) -> None:
        self._tls = tls
        self._seen: tuple[int, ...] = ()

    def read(self) -> grpc.ServerCertificateConfiguration:
        tls = self._tls
        self._seen = self._stamps()
        return grpc.ssl_server_certificate_configuration(
            [(tls.key.read_bytes(), tls.cert.read_bytes())],
            root_certificates=None if tls.client_ca is None else tls.client_ca.read_bytes(),
        )

    def read_if_changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Configuration to use from now on; None: the one in use. A file that is being replaced waits."""
        try:
            return None if self._stamps() == self._seen else self.read()
        except OSError:
            return None

    def _stamps(self) -> tuple[int, ...]:
        paths = (self._tls.cert, self._tls.key, self._tls.client_ca)
        return tuple(path.stat().st_mtime_ns for path in paths if path is not None)
