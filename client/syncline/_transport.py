"""Channels, TLS and keys: how a client reaches a server.

Two connections to a server: one for calls, one for streams. A stream that its reader is slow to empty fills its connection's
flow-control window; calls must not stand in that queue.
"""

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc
import grpc.aio

from syncline._route import Route, RoutedChannel

DEFAULT_PORT: Final = 7420
KEY_VARIABLE: Final = "SYNCLINE_KEY"
DATA_VARIABLE: Final = "SYNCLINE_DATA"
DEFAULT_DATA: Final = "syncline-data"
ADMIN_KEY_FILE: Final = "admin.key"

MAX_RECEIVE_BYTES: Final = 72 << 20
"""The largest record that a server can be set to accept is 64 MiB; answers are near 1 MiB otherwise."""

_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_RECEIVE_BYTES),
    ("grpc.max_send_message_length", -1),  # the server's limits decide, and say so better
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 20_000),  # without it a peer that stands still is not noticed in time
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),  # our own loops back off; this one only must not hold them up
    ("grpc.enable_retries", 0),  # ours know which calls may be repeated
    ("grpc.primary_user_agent", "syncline-python"),
)
_STREAM_OPTIONS: Final = (
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own
    # Without probing, a reader that stands still leaves 1 MiB with the transport, not 4 to 6.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 1 << 20),
)
_SCHEMES: Final = ("unix:", "dns:", "ipv4:", "ipv6:", "xds:")
"""Of names that gRPC resolves itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """How to speak TLS. Each file is a path to PEM, or the PEM text as bytes."""

    ca: Path | str | bytes | None = None
    """Authorities that the server's certificate may be signed by. None: those of the system."""
    certificate: Path | str | bytes | None = None
    """Certificate chain of this client, where the server asks for one (mTLS)."""
    private_key: Path | str | bytes | None = field(default=None, repr=False)
    """Its private key."""
    server_name: str | None = None
    """Name that the server's certificate must have, when it is not the one in the address."""

    def credentials(self) -> grpc.ChannelCredentials:
        """As gRPC wants them. Raises OSError when a file cannot be read, ValueError for half a pair."""
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError("Tls: certificate and private_key go together")
        return grpc.ssl_channel_credentials(_pem(self.ca), _pem(self.private_key), _pem(self.certificate))


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where the server is, how it is spoken to and with which key."""

    targets: Sequence[str]
    """The servers, as gRPC names them; any will do."""
    tls: Tls | None
    """None: plain text."""
    key: str | None = field(repr=False)
    key_origin: str
    """Where the key came from, for error messages; empty when there is none."""
    route: Route = field(compare=False)
    """Which of them is used."""

    @property
    def target(self) -> str:
        """All of them, for people."""
        return ", ".join(self.targets)

    def options(self, *, streams: bool) -> list[tuple[str, str | int]]:
        """Channel arguments."""
        options: list[tuple[str, str | int]] = [*_OPTIONS, *(_STREAM_OPTIONS if streams else ())]
        if self.tls is not None and self.tls.server_name:
            options.append(("grpc.ssl_target_name_override", self.tls.server_name))
        return options

    def open_channel(self, *, streams: bool = False) -> grpc.aio.Channel:
        """A channel, which connects when it is first used."""
        channels = [self._open_one(target, self.options(streams=streams)) for target in self.targets]
        return channels[0] if len(channels) == 1 else RoutedChannel(channels, self.route)

    def _open_one(self, target: str, options: list[tuple[str, str | int]]) -> grpc.aio.Channel:
        if self.tls is None:
            return grpc.aio.insecure_channel(target, options)
        return grpc.aio.secure_channel(target, self.tls.credentials(), options)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call carries."""
        return (("authorization", f"Bearer {self.key}"),) if self.key else ()


def resolve(
    address: str | Sequence[str], *, key: str | None, tls: Tls | bool | None, insecure: bool
) -> Endpoint:
    """Work out how to reach a server; the only place that reads the environment and the admin key's file.

    Raises ValueError for what cannot be an address, and where a key would travel in plain text.
    """
    addresses = _split(address) if isinstance(address, str) else list(address)
    if not addresses:
        raise ValueError("connect() needs an address, as in '127.0.0.1:7420'")
    targets = [_target(one) for one in addresses]
    local = all(map(_is_local, targets))
    chosen = _choose_tls(tls, local=local, insecure=insecure)
    if chosen is None and not local and not insecure:
        raise ValueError(
            f"{addresses[0]!r} is not on this machine, and the key would travel in plain text: leave out "
            "tls=False, or pass insecure=True if something else encrypts"
        )
    secret, origin = _find_key(key, local=local)
    return Endpoint(targets=targets, tls=chosen, key=secret, key_origin=origin, route=Route(len(targets)))


def _choose_tls(tls: Tls | bool | None, *, local: bool, insecure: bool) -> Tls | None:
    if isinstance(tls, Tls):
        return tls
    if tls is None:
        tls = not local and not insecure
    return Tls() if tls else None


def _split(address: str) -> list[str]:
    """Several addresses stand between commas; gRPC's own schemes have commas of their own."""
    return [address] if address.startswith(_SCHEMES) else address.split(",")


def _target(address: str) -> str:
    """``host:port`` with the default port filled in; gRPC's own schemes stay as they are."""
    address = address.strip()
    scheme, _, rest = address.partition("://")
    if rest and scheme in {"http", "https", "grpc", "grpcs"}:
        raise ValueError(
            f"{address!r}: an address is HOST:PORT without {scheme}://, as in {rest.rstrip('/')!r}"
        )
    if address.startswith(_SCHEMES):
        return address
    if not address:
        raise ValueError("an address is HOST:PORT, as in '127.0.0.1:7420'")
    if address.startswith("["):
        host, _, port = address.partition("]")
        host, port = host + "]", port.removeprefix(":")
    elif address.count(":") > 1:
        raise ValueError(f"{address!r}: an IPv6 address needs brackets, as in '[::1]:7420'")
    else:
        host, _, port = address.partition(":")
    port = port or str(DEFAULT_PORT)
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65_536):
        raise ValueError(f"{address!r}: {port!r} is not a port; an address is HOST:PORT")
    return f"{host}:{port}"


def _is_local(target: str) -> bool:
    if target.startswith("unix:"):
        return True
    _, _, bare = target.rpartition("/")
    bare = bare.removeprefix("ipv4:").removeprefix("ipv6:").removeprefix("dns:")
    for one in bare.split(","):
        host = one.rpartition(":")[0].strip("[]")
        if host == "localhost":
            continue
        try:
            if not ipaddress.ip_address(host).is_loopback:
                return False
        except ValueError:
            return False
    return True


def _find_key(key: str | None, *, local: bool) -> tuple[str | None, str]:
    """The key and where it came from: argument, environment, or on this machine the admin key's file."""
    if key is not None:
        return key.strip() or None, "the argument `key`"
    if from_environment := os.environ.get(KEY_VARIABLE, "").strip():
        return from_environment, f"the environment variable {KEY_VARIABLE}"
    if not local:
        return None, ""
    path = Path(os.environ.get(DATA_VARIABLE) or DEFAULT_DATA) / ADMIN_KEY_FILE
    try:
        return path.read_text().strip() or None, str(path)
    except OSError:
        return None, ""


def _pem(source: Path | str | bytes | None) -> bytes | None:
    if source is None or isinstance(source, bytes):
        return source
    return Path(source).read_bytes()
