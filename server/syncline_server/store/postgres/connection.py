"""Connections: what must be in force on each, how long it may wait, and transactions over them."""

import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import asyncpg

from syncline_server.store.abc import StoreRefused

Connection: TypeAlias = Any
"""``asyncpg.Connection`` or one that a pool lent out; asyncpg has no type information."""

SCHEMA: Final = "syncline"
LOCK_TIMEOUT_MS: Final = 5_000
"""A dataset is locked for the length of one commit; who waits longer waits for something that is stuck."""
STATEMENT_TIMEOUT_MS: Final = 60_000
IDLE_IN_TRANSACTION_TIMEOUT_MS: Final = 10_000
"""A node that is stopped inside a transaction holds its locks no longer than this."""

SETTINGS: Final[Mapping[str, str]] = {
    "application_name": "syncline-server",
    "search_path": SCHEMA,
    "client_min_messages": "warning",
    # The dataset's row is locked first; under any other level the snapshot would be older than the lock (F49).
    "default_transaction_isolation": "read committed",
    "lock_timeout": str(LOCK_TIMEOUT_MS),
    "statement_timeout": str(STATEMENT_TIMEOUT_MS),
    "idle_in_transaction_session_timeout": str(IDLE_IN_TRANSACTION_TIMEOUT_MS),
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    # Every statement has the index that it needs. A plan is kept for the life of a connection, and one that was made
    # while a table was empty must not be a scan of it.
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
}
READ_ONLY: Final[Mapping[str, str]] = {**SETTINGS, "default_transaction_read_only": "on"}

_FACTS: Final = """
SELECT pg_is_in_recovery() AS standby,
       current_setting('fsync') AS fsync,
       current_setting('full_page_writes') AS full_page_writes,
       current_setting('synchronous_commit') AS synchronous_commit,
       current_setting('server_encoding') AS server_encoding,
       current_setting('server_version') AS server_version,
       current_setting('server_version_num')::integer AS server_version_num
"""
# The checkpoint record still has the old timeline for a while after a promotion; the name of the WAL file has not.
_PLACE: Final = """
SELECT (SELECT system_identifier FROM pg_control_system()) || '/' ||
       ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::integer || '/' ||
       (SELECT oid FROM pg_database WHERE datname = current_database())
"""
_OLDEST_VERSION: Final = 140_000
_KEEP_ALIVE_SECONDS: Final = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
_UNANSWERED_MS: Final = 25_000
"""Bytes that were sent and not acknowledged for so long end the connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Which database it is: another cluster, timeline or database may have lost what this one knew."""

    identity: str
    """System identifier, timeline and oid of the database."""
    version: str


async def check(connection: Connection) -> Place:
    """Make sure that what is acknowledged on this connection is durable, and tell where it leads.

    Raises StoreRefused for a standby, settings under which a commit is not durable (hazard F10), an encoding other
    than UTF8, or a version before 14.
    """
    facts = await connection.fetchrow(_FACTS)
    if facts["server_version_num"] < _OLDEST_VERSION:
        raise StoreRefused(f"PostgreSQL {facts['server_version']} is too old; version 14 or later is needed")
    if facts["standby"]:
        raise StoreRefused("the server is a standby (in recovery); give the address of the primary")
    for name in ("fsync", "full_page_writes", "synchronous_commit"):
        if facts[name] == "off":
            raise StoreRefused(
                f"{name} is off: what is acknowledged would not be durable; set it to on for this database or role"
            )
    if facts["server_encoding"] != "UTF8":
        raise StoreRefused(f"the database's encoding is {facts['server_encoding']}; make it with UTF8")
    return Place(identity=await connection.fetchval(_PLACE), version=facts["server_version"])


def keep_alive(connection: Connection) -> None:
    """Have the system notice a server that is gone without a word, within half a minute; else a call would wait for ever.

    asyncpg has no setting for it, so this takes the socket from its transport. Sockets of the same machine need none.
    """
    found = connection._transport.get_extra_info("socket")  # noqa: SLF001
    if found is None or found.family not in (socket.AF_INET, socket.AF_INET6):
        return
    found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, seconds in _KEEP_ALIVE_SECONDS.items():
        if hasattr(socket, name):  # not every system has them
            found.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNANSWERED_MS)


@asynccontextmanager
async def single_connection(dsn: str, settings: Mapping[str, str] = SETTINGS) -> AsyncIterator[Connection]:
    """One connection outside of a pool, for the tools. Raises StoreRefused when there is none to be had."""
    try:
        connection = await asyncpg.connect(dsn, server_settings=dict(settings))
    except asyncpg.ClientConfigurationError as error:
        raise StoreRefused(f"the database cannot be reached: {error}") from error
    except ValueError:
        # The words of the parser can hold parts of the address, so of the password.
        raise StoreRefused(
            "the database cannot be reached: its address is not postgresql://USER@HOST:PORT/DATABASE with special "
            "characters as %XX; give the password by PGPASSWORD or ~/.pgpass"
        ) from None
    except OSError as error:  # TimeoutError too
        raise StoreRefused(
            f"the database cannot be reached: {error}; check the address, and that PostgreSQL runs there"
        ) from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise StoreRefused(f"the database cannot be reached: {error}") from error
    try:
        yield connection
    finally:
        await connection.close()
