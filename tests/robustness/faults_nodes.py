"""A schedule of faults, drawn from a seed, for nodes over one PostgreSQL: the nodes, the database, the ways between."""

import asyncio
import contextlib
import random
import signal
from collections.abc import Awaitable, Callable

from robustness.history import History
from robustness.nodes import Node, Nodes
from support.frail_postgres import connection_to
from support.postgres_proxy import LISTENER

PLACES = ("commit.before", "commit.rows", "commit.after", "stage.after", "session.applied", "purge")
"""Failpoints at which a node may be killed; see ``syncline_server.failpoints``."""
DIES_WITHIN_SECONDS = 3.0

_END_BACKENDS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND application_name LIKE 'syncline-server%' AND random() < $1
"""
_LOCK = """
SELECT FROM syncline.head WHERE dataset_number IN (SELECT number FROM syncline.dataset WHERE dataset_id = $1) FOR UPDATE
"""
_LEADER = "SELECT addresses FROM syncline.lease JOIN syncline.node ON holder = node_id"


class NodeFaults:
    """Does one thing after another to the nodes, to their database, and to what is between."""

    def __init__(self, history: History, nodes: Nodes, *, seed: int) -> None:
        self.history = history
        self.nodes = nodes
        self.rng = random.Random(f"{seed} faults of nodes")
        self.starts = 0
        """How often a node was started again."""
        self.crashes = 0
        """How often the database was."""

    NODE = ("kill", "terminate", "freeze", "freeze_leader", "die_at_a_place")
    CLIENTS = ("cut_clients", "hold_clients")
    DATABASE = (
        "crash_database",
        "end_backends",
        "cut_after_commit",
        "cut_database",
        "hold_database",
        "slow_database",
        "deafen_listener",
        "lock_dataset",
    )
    ALL = NODE + CLIENTS + DATABASE

    async def rage(self, seconds: float, kinds: tuple[str, ...] = ALL) -> None:
        """Faults for so long, each kind as often as the others; when this returns, all is well again."""
        faults: dict[str, Callable[[], Awaitable[None]]] = {name: getattr(self, name) for name in kinds}
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        order: list[str] = []
        while loop.time() < end:
            await asyncio.sleep(self.rng.uniform(0.02, 0.4))
            if not order:
                order = self.rng.sample(kinds, len(kinds))
            name = order.pop()
            self.history.fault(name)
            await faults[name]()
            await self.nodes.mend()
            for node in self.nodes:
                assert node.server.is_running, f"after {name} a node has ended: {node.server.log[-1000:]}"

    # -- the nodes ----------------------------------------------------------------------------------------

    def _node(self) -> Node:
        return self.rng.choice(list(self.nodes))

    async def kill(self) -> None:
        """SIGKILL, and start again."""
        node = self._node()
        await node.server.kill()
        await self._while()
        await self._start(node)

    async def terminate(self) -> None:
        """SIGTERM, and start again; it must end cleanly."""
        node = self._node()
        code = await node.server.terminate()
        assert code == 0, f"a node ended with {code}"
        await self._start(node)

    async def freeze(self) -> None:
        """SIGSTOP for a while."""
        await self._freeze(self._node())

    async def freeze_leader(self, seconds: float | None = None) -> None:
        """The same with the node that holds the lease of what runs once; another one takes it meanwhile."""
        async with connection_to(self.nodes.dsn) as connection:
            addresses = str(await connection.fetchval(_LEADER))
        leaders = [node for node in self.nodes if f'"{node.server.address}"' in addresses]
        await self._freeze(leaders[0] if leaders else self._node(), seconds)

    async def _freeze(self, node: Node, seconds: float | None = None) -> None:
        node.server.send(signal.SIGSTOP)
        try:
            await self._while(seconds)
        finally:
            node.server.send(signal.SIGCONT)

    async def die_at_a_place(self) -> None:
        """Start again so that it dies at a failpoint; or by SIGKILL when it does not come there."""
        node = self._node()
        await node.server.kill()
        place, visit = self.rng.choice(PLACES), self.rng.randint(3, 12)
        self.history.fault(f"{place}=kill@{visit}")
        with contextlib.suppress(RuntimeError):  # it came there before it listened
            await self._start(node, env={"SYNCLINE_FAILPOINTS": f"{place}=kill@{visit}"})
        with_failpoint = asyncio.get_running_loop().time() + DIES_WITHIN_SECONDS
        while node.server.is_running and asyncio.get_running_loop().time() < with_failpoint:
            await asyncio.sleep(0.02)
        await node.server.kill()
        await self._start(node)

    async def _start(self, node: Node, **how: object) -> None:
        self.starts += 1
        await node.server.start(**how)

    # -- the clients' connections -------------------------------------------------------------------------

    async def cut_clients(self) -> None:
        """Reset every connection of clients with one node."""
        await self._node().front.cut()

    async def hold_clients(self) -> None:
        """Nothing passes between clients and one node, in one direction or both."""
        self._node().front.hold(*self.rng.choice([("requests",), ("answers",), ("requests", "answers")]))
        await self._while()

    # -- the database -------------------------------------------------------------------------------------

    async def crash_database(self) -> None:
        """PostgreSQL ends without warning and recovers (T73)."""
        self.crashes += 1
        await self.nodes.cluster.crash()

    async def end_backends(self) -> None:
        """Some sessions of the nodes, or all, are terminated (T74)."""
        async with connection_to(self.nodes.dsn) as connection:
            await connection.execute(_END_BACKENDS, self.rng.choice([0.2, 0.5, 1.0]))

    async def cut_after_commit(self) -> None:
        """Three times a connection is reset between a commit and its answer (T75)."""
        for _ in range(3):
            back = self._node().back
            back.cut_before_commit_answer(self.rng.randint(1, 3))
            await asyncio.sleep(self.rng.uniform(0.02, 0.2))

    async def cut_database(self) -> None:
        """Reset every connection of one node with the database."""
        await self._node().back.cut()

    async def hold_database(self) -> None:
        """One node hears nothing more from the database, and then the connections are reset: what was asked is done."""
        back = self._node().back
        back.hold("answers")
        await self._while()
        if self.rng.random() < 0.5:
            await back.cut()

    async def slow_database(self) -> None:
        """Everything between one node and the database is late by different times."""
        self._node().back.jitter_seconds = self.rng.uniform(0.005, 0.05)
        await self._while()

    async def deafen_listener(self) -> None:
        """Wake-ups do not reach one node any more, without a sign of it (T79)."""
        for link in self._node().back.of_kind(LISTENER):
            link.held.add("answers")
        await self._while()

    async def lock_dataset(self) -> None:
        """A stranger holds the row of a dataset (T83)."""
        async with connection_to(self.nodes.dsn) as connection, connection.transaction():
            await connection.execute("SET LOCAL lock_timeout = '3s'")
            await connection.execute(_LOCK, self.rng.choice(["things", "items", "log"]))
            await self._while()

    # -- how long -----------------------------------------------------------------------------------------

    async def _while(self, seconds: float | None = None) -> None:
        await asyncio.sleep(self.rng.choice([0.05, 0.3, 0.8]) if seconds is None else seconds)
