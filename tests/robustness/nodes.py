"""Nodes over one PostgreSQL, with a proxy before each of them and another one behind it."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from robustness.recorder import PostgresRecorder
from support.frail_postgres import FrailPostgres
from support.postgres_proxy import PostgresProxy
from support.proxy import Proxy
from support.server_process import ServerProcess, server_process
from syncline_server.store.postgres.fsck import fsck

LATE_COMMITS = """
CREATE FUNCTION audit.dawdle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    PERFORM pg_sleep(random() * 0.01);
    RETURN NULL;
END $$;
CREATE TRIGGER audit_dawdle AFTER INSERT ON syncline.revision
    FOR EACH STATEMENT EXECUTE FUNCTION audit.dawdle();
"""
"""To be executed when the recorder is installed: each commit takes up to 10 ms more under its lock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A server and the two ways to break off with it."""

    server: ServerProcess
    front: Proxy
    """Between the clients and the node."""
    back: PostgresProxy
    """Between the node and the database."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    """Servers on one database."""

    cluster: FrailPostgres
    database: str
    nodes: Sequence[Node]

    def __iter__(self):
        return iter(self.nodes)

    def __getitem__(self, number: int) -> Node:
        return self.nodes[number]

    @property
    def dsn(self) -> str:
        """The database, without a proxy."""
        return self.cluster.dsn(self.database)

    @property
    def recorder(self) -> PostgresRecorder:
        """Of what is committed to it."""
        return PostgresRecorder(self.dsn)

    @property
    def addresses(self) -> list[str]:
        """Where the clients are to connect: the front proxies."""
        return [node.front.address for node in self.nodes]

    async def check(self) -> None:
        """Stop the nodes, which must end cleanly, and check the store (fsck)."""
        for node in self.nodes:
            code = await node.server.stop()
            assert code == 0, f"a node ended with {code}"
        report = await fsck(self.dsn)
        assert report.ok, report.problems

    async def mend(self) -> None:
        """End every fault of the proxies."""
        for node in self.nodes:
            await node.front.mend()
            await node.back.mend()


@asynccontextmanager
async def nodes_on(
    cluster: FrailPostgres,
    directory: Path,
    *,
    seed: int = 0,
    env: Mapping[str, str] | None = None,
    prefixes: Sequence[Sequence[str]] = ((), ()),
) -> AsyncIterator[Nodes]:
    """As many nodes as there are ``prefixes``, each run under its own, in a new database of a running cluster."""
    database = cluster.new_database()
    users = [f"node_{number}" for number in range(len(prefixes))]
    cluster.make_users(*users)  # so that the database knows which node does something
    async with AsyncExitStack() as stack:
        nodes = []
        for number, prefix in enumerate(prefixes):
            back = await stack.enter_async_context(PostgresProxy.to(cluster.address, seed=seed + number))
            own = directory / f"node-{number}"
            own.mkdir(parents=True)
            server = await stack.enter_async_context(
                server_process(
                    own,
                    env=env,
                    prefix=prefix,
                    store=cluster.dsn_at(back.address, database, users[number]),
                    data=directory / "data",
                )
            )
            front = await stack.enter_async_context(Proxy.to(server.address, seed=seed + number))
            nodes.append(Node(server=server, front=front, back=back))
        yield Nodes(cluster=cluster, database=database, nodes=nodes)
