"""Every setting of the server, and the only place that reads its environment.

A setting comes, in this order, from the command line, from the environment (``SYNCLINE_`` and the name in
capitals), from the TOML file given by ``--config``, or is the default here. Names end in their unit.
"""

import ipaddress
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

ENVIRONMENT_PREFIX: Final = "SYNCLINE_"

_DAY_SECONDS: Final = 86_400.0


class SettingsError(Exception):
    """A setting is wrong. The text names it, its environment variable and what is expected."""


class Settings(BaseSettings):
    """All settings, checked."""

    model_config = SettingsConfigDict(env_prefix=ENVIRONMENT_PREFIX, extra="forbid", frozen=True)
    toml_file: ClassVar[Path | None] = None

    # -- where --------------------------------------------------------------------------------------------
    data: Annotated[
        Path,
        Field(description="Directory of the store and of the admin key; made on first start, mode 0700."),
    ] = Path("syncline-data")
    store: Annotated[
        SecretStr,
        Field(
            description="`postgresql://USER@HOST/DATABASE`: the PostgreSQL database that is the store, shared by any "
            "number of nodes. Empty: an SQLite file in `data`. A password is better in `PGPASSWORD` or `~/.pgpass`."
        ),
    ] = SecretStr("")
    node: Annotated[
        str,
        Field(
            description="Name of this node, for people. Empty: the host's name and the port of the first address.",
            max_length=200,
        ),
    ] = ""
    listen: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(
            description="Addresses of the gRPC server, separated by commas: `HOST:PORT`, `[IPV6]:PORT` or `unix:PATH`.",
            min_length=1,
        ),
    ] = ("127.0.0.1:7420",)
    http: Annotated[
        str, Field(description="`HOST:PORT` of `/metrics` and `/healthz`, without TLS or keys. Empty: none.")
    ] = "127.0.0.1:7421"

    # -- who ----------------------------------------------------------------------------------------------
    insecure: Annotated[
        bool, Field(description="Allow plain text on addresses that are neither loopback nor a unix socket.")
    ] = False
    tls_cert: Annotated[
        Path | None, Field(description="PEM file of the certificate chain; turns TLS on. Needs `tls_key`.")
    ] = None
    tls_key: Annotated[Path | None, Field(description="PEM file of the certificate's private key.")] = None
    tls_client_ca: Annotated[
        Path | None,
        Field(description="PEM file of the authorities whose client certificates are required (mTLS)."),
    ] = None
    reflection: Annotated[bool, Field(description="Offer gRPC server reflection.")] = False

    # -- how much a call may bring ------------------------------------------------------------------------
    records_per_call: Annotated[PositiveInt, Field(description="Most records, keys or ids in one call.")] = (
        10_000
    )
    bytes_per_call: Annotated[
        int, Field(description="Most bytes of all records of one call together.", ge=1 << 10, le=256 << 20)
    ] = 4 << 20
    bytes_per_record: Annotated[
        int,
        Field(
            description="Most bytes of one record, as sent and as canonical JSON. "
            "Above 3 MiB it no longer fits the default limits of gRPC clients.",
            ge=1 << 8,
            le=64 << 20,
        ),
    ] = 1 << 20
    depth: Annotated[
        int, Field(description="Deepest nesting of a record; the object itself is 1.", ge=1, le=200)
    ] = 64
    bytes_per_record_id: Annotated[int, Field(description="Most bytes of a record id.", ge=36, le=2048)] = 512

    # -- how much at once ---------------------------------------------------------------------------------
    calls_in_flight: Annotated[
        PositiveInt, Field(description="Most calls at once, streams not counted; above it OVERLOADED.")
    ] = 2_000
    bytes_in_flight: Annotated[
        PositiveInt, Field(description="Most bytes of the requests of these calls; above it OVERLOADED.")
    ] = 128 << 20
    queue_bytes: Annotated[
        PositiveInt, Field(description="Most bytes of writes that wait for the store; above it OVERLOADED.")
    ] = 64 << 20
    streams_per_key: Annotated[
        PositiveInt, Field(description="Most open streams of one key; above it TOO_MANY_STREAMS.")
    ] = 1_000
    streams_per_connection: Annotated[
        PositiveInt,
        Field(description="Most calls and streams at once on one connection; more wait in the client."),
    ] = 1_000

    # -- producers ----------------------------------------------------------------------------------------
    producer_credit_bytes: Annotated[
        int,
        Field(
            description="Bytes of readings that a producer may have on their way, not acknowledged yet.",
            ge=1 << 10,
            le=64 << 20,
        ),
    ] = 1 << 20
    producer_backlog_bytes: Annotated[
        PositiveInt,
        Field(description="Bytes of readings of all producers that wait; above it they are asked to pause."),
    ] = 64 << 20

    subscriptions_per_stream: Annotated[
        PositiveInt,
        Field(
            description="Most subscriptions of one UpdateFeed stream, each dataset of a prefix counted; "
            "above it TOO_MANY_SUBSCRIPTIONS."
        ),
    ] = 10_000

    # -- sessions -----------------------------------------------------------------------------------------
    sessions: Annotated[PositiveInt, Field(description="Most open sessions; above it TOO_MANY_SESSIONS.")] = (
        1_000
    )
    session_idle_seconds: Annotated[
        float,
        Field(
            description="Accrue and replace sessions idle for longer are rolled back.",
            ge=1,
            le=7 * _DAY_SECONDS,
        ),
    ] = 3_600.0
    mass_delete_ratio: Annotated[
        float,
        Field(
            description="A commit that would delete more than this part of a source is refused.", ge=0, le=1
        ),
    ] = 0.5
    mass_delete_above_records: Annotated[
        NonNegativeInt, Field(description="The guard's ratio applies to sources with more records than this.")
    ] = 100

    # -- the feed -----------------------------------------------------------------------------------------
    page_changes: Annotated[
        int, Field(description="Most changes in one page of a sync.", ge=1, le=10_000)
    ] = 1_000
    page_bytes: Annotated[
        int,
        Field(
            description="Bytes that a page stays below, unless one record alone is larger.",
            ge=1 << 10,
            le=2 << 20,
        ),
    ] = 256 << 10
    ring_bytes: Annotated[
        NonNegativeInt, Field(description="Memory for the newest frames of each dataset that is followed.")
    ] = 8 << 20
    page_cache_bytes: Annotated[
        NonNegativeInt,
        Field(
            description="Memory for the pages of copies from nothing, kept for some seconds for others who begin "
            "then; all datasets together."
        ),
    ] = 64 << 20
    credit_bytes: Annotated[
        int,
        Field(
            description="Bytes that may be under way to a subscription of UpdateFeed that names no credit.",
            ge=1 << 10,
            le=1 << 30,
        ),
    ] = 1 << 20
    filter_members: Annotated[
        NonNegativeInt,
        Field(
            description="Records that filtered copies are accounted for, all together (about 250 bytes each); "
            "above it checkpoints of further ones come without count and digest."
        ),
    ] = 1_000_000
    checkpoint_seconds: Annotated[
        PositiveFloat,
        Field(description="A subscription that is up to date gets a checkpoint this often (± 10 %)."),
    ] = 10.0
    revision_wait_seconds: Annotated[
        PositiveFloat, Field(description="Longest wait for `min_revision` in a call that has no deadline.")
    ] = 30.0

    # -- what is kept -------------------------------------------------------------------------------------
    retention_seconds: Annotated[
        NonNegativeFloat,
        Field(description="Least age of a tombstone before it may go, unless the dataset says."),
    ] = 7 * _DAY_SECONDS
    retention_revisions: Annotated[
        NonNegativeInt,
        Field(
            description="Newest revisions whose tombstones are kept whatever their age, unless the dataset says."
        ),
    ] = 1_000
    purge_seconds: Annotated[
        PositiveFloat, Field(description="Time between two looks for tombstones to drop.")
    ] = 60.0
    purge_tombstones: Annotated[
        PositiveInt, Field(description="Most tombstones dropped in one transaction.")
    ] = 5_000
    request_retention_seconds: Annotated[
        float, Field(description="How long a request id is remembered; older ones are refused.", ge=60)
    ] = _DAY_SECONDS

    replica_expiry_seconds: Annotated[
        float,
        Field(
            description="A replica that has not reported for this long counts no more, and purge waits for it no more.",
            ge=60,
        ),
    ] = 7 * _DAY_SECONDS

    # -- connections --------------------------------------------------------------------------------------
    keepalive_seconds: Annotated[
        PositiveFloat, Field(description="A silent connection is pinged this often.")
    ] = 60.0
    keepalive_timeout_seconds: Annotated[
        PositiveFloat, Field(description="A connection that does not answer a ping for this long is closed.")
    ] = 20.0
    client_ping_seconds: Annotated[
        PositiveFloat, Field(description="Least time between two pings of a client; faster ones are cut off.")
    ] = 20.0
    write_seconds: Annotated[
        PositiveFloat,
        Field(
            description="A stream whose client takes nothing for this long is ended; "
            "the client goes on from its token."
        ),
    ] = 300.0
    connection_age_seconds: Annotated[
        NonNegativeFloat,
        Field(
            description="Connections are asked to reconnect at this age (± 10 %), for load balancing. 0: never."
        ),
    ] = 0.0

    # -- operation ----------------------------------------------------------------------------------------
    shutdown_seconds: Annotated[
        PositiveFloat, Field(description="Time for calls in progress when the server is asked to stop.")
    ] = 10.0
    key_check_seconds: Annotated[
        float,
        Field(
            description="Time between two checks that the keys of open streams are still good.", gt=0, le=15
        ),
    ] = 10.0
    probe_seconds: Annotated[
        PositiveFloat, Field(description="Time between two checks that the store can be written.")
    ] = 5.0
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Field(description="Least level of what is logged.")
    ] = "info"
    log_format: Annotated[
        Literal["auto", "json", "text"],
        Field(description="Form of the log on standard error. `auto`: text on a terminal, else JSON lines."),
    ] = "auto"

    @field_validator("store")
    @classmethod
    def _check_store(cls, value: SecretStr) -> SecretStr:
        address = value.get_secret_value()
        if address and not is_postgres(address):
            raise ValueError(
                "expected postgresql://USER@HOST/DATABASE, or nothing for an SQLite file in `data`"
            )
        return value

    @field_validator("listen", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value

    @field_validator("listen")
    @classmethod
    def _check_listen(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for address in value:
            if not address.startswith("unix:"):
                split_address(address)
        return value

    @field_validator("http")
    @classmethod
    def _check_http(cls, value: str) -> str:
        if value:
            split_address(value)
        return value

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("`tls_cert` and `tls_key` go together")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("`tls_client_ca` needs `tls_cert` and `tls_key`")
        if self.bytes_per_record > self.bytes_per_call:
            raise ValueError("`bytes_per_record` must not be above `bytes_per_call`")
        if self.client_ping_seconds > self.keepalive_seconds:
            raise ValueError(
                "`client_ping_seconds` must not be above `keepalive_seconds`, the SDK's own interval"
            )
        if self.tls_cert is None and not self.insecure:
            for address in self.listen:
                if not is_local(address):
                    raise ValueError(
                        f"`listen` {address!r} is reachable from outside, and keys would go over it in plain text: "
                        "set `tls_cert` and `tls_key`, or `insecure` (--insecure) if something else encrypts"
                    )
        return self

    @property
    def store_address(self) -> str:
        """Where the store is: a PostgreSQL address, with its password if it has one; empty: in ``database``."""
        return self.store.get_secret_value()

    @property
    def is_alone(self) -> bool:
        """Whether no other node can have the store open."""
        return not self.store_address

    @property
    def database(self) -> Path:
        """File of the embedded store."""
        return self.data / "syncline.db"

    @property
    def admin_key(self) -> Path:
        """File of the key that the first start makes."""
        return self.data / "admin.key"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Command line, environment, file; no `.env`, which would be read from wherever the server starts."""
        del dotenv_settings, file_secret_settings
        file = TomlConfigSettingsSource(settings_cls, cls.toml_file) if cls.toml_file else None
        return (init_settings, env_settings, *([file] if file else []))


def load_settings(config: Path | None = None, **given: Any) -> Settings:
    """Read all settings; ``given`` are those of the command line, None meaning not given.

    Raises SettingsError.
    """
    if config is not None and not config.is_file():
        raise SettingsError(f"there is no file {str(config)!r} (--config)")
    reader = type("Settings", (Settings,), {"toml_file": config, "__doc__": Settings.__doc__})
    try:
        return reader(**{name: value for name, value in given.items() if value is not None})  # type: ignore[no-any-return]
    except ValidationError as error:
        raise SettingsError(_explain(error)) from None
    except ValueError as error:  # the TOML file's syntax
        raise SettingsError(f"{config}: {error}") from None


def split_address(address: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT`` or ``[IPV6]:PORT``. Raises ValueError."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ValueError(f"{address!r} is not an address: expected HOST:PORT, [IPV6]:PORT or unix:PATH")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError(f"{address!r}: an IPv6 address needs brackets, as in [::1]:7420")
    return host.strip("[]"), int(port)


def is_postgres(address: str) -> bool:
    """Whether a store's address names a PostgreSQL database."""
    return address.startswith(("postgresql://", "postgres://"))


def is_local(address: str) -> bool:
    """Whether only this machine can reach the address."""
    if address.startswith("unix:"):
        return True
    host, _ = split_address(address)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors(include_url=False, include_input=False):
        message = problem["msg"].removeprefix("Value error, ")
        if problem["loc"]:
            name = str(problem["loc"][0])
            if problem["type"] == "extra_forbidden":
                lines.append(f"`{name}` is not a setting")
            else:
                lines.append(f"`{name}` ({ENVIRONMENT_PREFIX}{name.upper()}): {message}")
        else:
            lines.append(message)
    return "; ".join(lines)
