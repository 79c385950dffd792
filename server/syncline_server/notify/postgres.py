"""Wake-ups between nodes: NOTIFY and LISTEN of PostgreSQL, beside the plain call inside the process.

A payload is ``1 <node> <number>:<revision> …``, and ``1 <node> ?<echo>`` from a node that listens for itself. It
tells where to look and nothing else: whoever can connect to the database can send one.

NOTIFY takes a lock of the whole database until its transaction has ended, so it never stands in one that writes. One
task sends what has gathered since it sent last (hazard F52). Neither of the two connections waits for the disk or for
standbys: nothing that they do has to last.
"""

import asyncio
import contextlib
import random
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias

import asyncpg
import structlog

from syncline_server.metrics import Metrics
from syncline_server.model import Appended
from syncline_server.notify.abc import EVERYWHERE, Hint, Hinted
from syncline_server.notify.local import LocalNotifier

_log = structlog.get_logger()

Connection: TypeAlias = Any
"""``asyncpg.Connection``, which has no type information."""

CHANNEL: Final = "syncline"
PAYLOAD_BYTES: Final = 7_900
"""PostgreSQL takes less than 8000."""
SPACING_SECONDS: Final = 0.002
"""Between two payloads of one node: under load they carry more instead of coming more often."""
ECHO_SECONDS: Final = 5.0
"""A listener must hear itself within this, and this often, or it has been cut off."""
RETRY_SECONDS: Final = 0.1
RETRY_MOST_SECONDS: Final = 5.0
CONNECT_SECONDS: Final = 5.0
FLUSH_SECONDS: Final = 1.0
"""For the last payload of a node that stops."""

_SETTINGS: Final = {
    "application_name": "syncline-server notify",
    "synchronous_commit": "off",
    "lock_timeout": "5000",
    "statement_timeout": "5000",
    "client_min_messages": "warning",
    # PostgreSQL keeps what a listener has not fetched; it is to find out when there is none any more.
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}
_NOTIFY: Final = "SELECT pg_notify($1, $2)"
_VERSION: Final = "1"
_PAIR: Final = re.compile(r"([1-9][0-9]{0,18}):(0|[1-9][0-9]{0,18})")
_TROUBLE: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)


class PostgresNotifier(LocalNotifier):
    """Tells the listeners of this process at once, and other nodes through the database. Works inside ``running``."""

    def __init__(self, address: str, node_id: str, metrics: Metrics) -> None:
        """``address`` may hold a password; ``node_id`` has no blanks."""
        super().__init__()
        self._address = address
        self._node_id = node_id
        self._metrics = metrics
        self._hinted: list[Hinted] = []
        self._untold: dict[int, int] = {}
        """Newest revision announced here that other nodes were not told of, by dataset."""
        self._to_tell = asyncio.Event()
        self._echoes = 0
        self._echoed = asyncio.Event()
        metrics.listening.set(0)

    # -- what the process says and hears ------------------------------------------------------------------

    def announce(self, appended: Appended) -> None:
        """See Notifier."""
        super().announce(appended)
        self.tell(appended.dataset_number, appended.head.revision)

    def tell(self, dataset_number: int, revision: int) -> None:
        """See Notifier."""
        self._untold[dataset_number] = max(revision, self._untold.get(dataset_number, 0))
        self._to_tell.set()

    def hear(self, hinted: Hinted) -> Callable[[], None]:
        """See Notifier."""
        self._hinted.append(hinted)
        return lambda: self._hinted.remove(hinted)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Talk to other nodes while the block lasts; at the end they are told what is left, if that is quick."""
        tasks = [
            asyncio.create_task(self._keep(self._listen), name="notify.listen"),
            asyncio.create_task(self._keep(self._tell), name="notify.tell"),
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            with contextlib.suppress(*_TROUBLE):
                async with asyncio.timeout(FLUSH_SECONDS):
                    await self._tell_rest()

    # -- the two connections ------------------------------------------------------------------------------

    async def _keep(self, work: Callable[[Connection], Any]) -> None:
        """Do ``work`` on a connection, and on another one when it breaks; never returns."""
        failures = 0
        while True:
            begun = asyncio.get_running_loop().time()
            try:
                async with self._connection() as connection:
                    await work(connection)
            except _TROUBLE as error:
                self._metrics.background_failures.labels("notify").inc()
                lasted = asyncio.get_running_loop().time() - begun
                failures = 0 if lasted > 2 * ECHO_SECONDS else failures + 1
                if failures <= 1:
                    _log.warning("notify.broken", task=work.__name__.strip("_"), error=type(error).__name__)
            self._tell_hint(EVERYWHERE)  # nobody may be listening now
            most = min(RETRY_MOST_SECONDS, RETRY_SECONDS * 2.0**failures)
            await asyncio.sleep(random.uniform(0, most))  # noqa: S311 - spreads load, hides nothing

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        connection = await asyncpg.connect(
            self._address, timeout=CONNECT_SECONDS, command_timeout=ECHO_SECONDS, server_settings=_SETTINGS
        )
        try:
            yield connection
        finally:
            connection.terminate()  # a farewell could wait for a server that is gone

    # -- listening ----------------------------------------------------------------------------------------

    async def _listen(self, connection: Connection) -> None:
        """Listen until it breaks. Raises TimeoutError when nothing comes through any more."""
        broken = asyncio.Event()
        connection.add_termination_listener(lambda _: broken.set())
        await connection.add_listener(CHANNEL, self._on_payload)
        try:
            while not broken.is_set():
                await self._echo(connection)
                # Whatever was not heard before is looked for now that everything later will be.
                if not self.hears:
                    self._set_hears(hears=True)
                    self._tell_hint(EVERYWHERE)
                pause = ECHO_SECONDS * random.uniform(0.8, 1.2)  # noqa: S311 - spreads load, hides nothing
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await broken.wait()
            raise ConnectionResetError("the connection that listens was closed")
        finally:
            self._set_hears(hears=False)

    async def _echo(self, connection: Connection) -> None:
        """Send this node a word and hear it: a connection can be dead without a sign, or led to another session."""
        self._echoes += 1
        self._echoed.clear()
        async with asyncio.timeout(ECHO_SECONDS):
            await connection.execute(_NOTIFY, CHANNEL, f"{_VERSION} {self._node_id} ?{self._echoes}")
            await self._echoed.wait()

    def _set_hears(self, *, hears: bool) -> None:
        self.hears = hears
        self._metrics.listening.set(int(hears))

    def _on_payload(self, connection: Connection, pid: int, channel: str, payload: object) -> None:
        del connection, pid, channel
        version, _, rest = str(payload).partition(" ")
        node_id, _, told = rest.partition(" ")
        if node_id == self._node_id:
            if told == f"?{self._echoes}":
                self._echoed.set()
            return
        if version == _VERSION and told and (hint := read_hint(told)):
            self._metrics.wakeups.inc()
            self._tell_hint(hint)

    def _tell_hint(self, hint: Hint) -> None:
        for hinted in tuple(self._hinted):
            hinted(hint)

    # -- telling ------------------------------------------------------------------------------------------

    async def _tell(self, connection: Connection) -> None:
        """Tell other nodes whatever is announced here, until it breaks."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ECHO_SECONDS):
                    await self._to_tell.wait()
            if not self._untold:
                await connection.execute("SELECT")  # a dead connection is to be found before it is needed
            await self._tell_on(connection)
            await asyncio.sleep(SPACING_SECONDS)

    async def _tell_on(self, connection: Connection) -> None:
        self._to_tell.clear()
        untold, self._untold = self._untold, {}
        try:
            for payload in payloads(self._node_id, untold):
                await connection.execute(_NOTIFY, CHANNEL, payload)
        except BaseException:
            for number, revision in untold.items():
                self._untold[number] = max(revision, self._untold.get(number, 0))
            self._to_tell.set()
            raise

    async def _tell_rest(self) -> None:
        if self._untold:
            async with self._connection() as connection:
                await self._tell_on(connection)


def payloads(node_id: str, revisions: dict[int, int]) -> Iterator[str]:
    """What is sent: as few payloads as hold all pairs."""
    begin = f"{_VERSION} {node_id}"
    payload = begin
    for number, revision in revisions.items():
        pair = f" {number}:{revision}"
        if len(payload) + len(pair) > PAYLOAD_BYTES:
            yield payload
            payload = begin
        payload += pair
    if payload != begin:
        yield payload


def read_hint(told: str) -> Hint:
    """Pairs of a payload, by dataset; nothing when any of it is of another form."""
    hint: dict[int, int] = {}
    for word in told.split(" "):
        pair = _PAIR.fullmatch(word)
        if pair is None:
            return {}
        number, revision = int(pair[1]), int(pair[2])
        hint[number] = max(revision, hint.get(number, 0))
    return hint
