"""The whole of Syncline on real data, in about half a minute: `make demo`.

28,000 airports are loaded by a replace session while a second process follows; a second edition with a few real
edits goes in and only those arrive; the server is killed in the middle of a third load and started again; at
the end the follower's copy, the producer's set and the server are proven equal by digest. Then the live half, in
`demo_live.py`: a replica in a file, a filtered copy, a sensor over a link that is cut ten times, a mirror.

With `make demo STORE=postgres` the same load goes over two nodes and one PostgreSQL, in `demo_nodes.py`.
"""

import os
import signal
import sys
import tempfile
from pathlib import Path

# Read by gRPC when it is imported: it would say on standard error that programs are started beside it.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")

import syncline
from examples.demo_airports import (
    CALL,
    CALLS_BEFORE_KILL,
    SCHEMA,
    digest_of,
    edit,
    editions,
    killed_load,
    load,
)
from examples.demo_live import live_scenes
from examples.demo_parts import Follower, Server, console, run, tell


async def demo() -> None:
    """Run the demo and print the figures."""
    with tempfile.TemporaryDirectory(prefix="syncline-demo-") as directory:
        async with Server(Path(directory)).running() as server:
            key = server.admin_key
            console.print(f"server at {server.address}, embedded store in {directory}")
            async with (
                syncline.connect(server.address, key=key) as client,
                Follower(server.address, key).running() as follower,
            ):
                await client.create_dataset("airports", identity=syncline.by_key("icao"), schema=SCHEMA)
                await scenes(client, follower, server)
                await live_scenes(client, server.address, key, Path(directory), tell)


async def scenes(client: syncline.Client, follower: Follower, server: Server) -> None:
    """The story, scene by scene."""
    first, second, third = editions()
    airports = client.dataset("airports")
    await load(airports, follower, first)
    await edit(airports, follower, second)

    console.print("3. third edition; SIGKILL to the server in the middle of the load, start again")

    async def kill() -> None:
        await server.stop(signal.SIGKILL)
        await server.start()

    finished = await killed_load(airports, third, kill)
    seen = await follower.reach(finished.result.revision)
    tell(
        "third edition",
        f"{finished.result.updated:,} updated, {finished.result.unchanged:,} unchanged; "
        f"server killed at record {CALLS_BEFORE_KILL * CALL:,}",
    )
    tell("kill -9 to serving again", f"{finished.down_seconds:.2f} s")

    console.print("4. prove that all three are equal")
    info = await client.get_dataset("airports")
    recomputed = await digest_of(airports, third)
    assert info.digest.hex() == seen["digest"] == recomputed
    assert seen["resets"] == 0
    tell("digest of server, follower and producer", f"{recomputed} (equal)")
    tell("records", f"{info.record_count:,} at revision {info.revision}")


def main() -> None:
    """Run the demo on the store that is named: `sqlite`, or `postgres`."""
    store = sys.argv[1] if len(sys.argv) > 1 else "sqlite"
    if store not in ("sqlite", "postgres"):
        sys.exit(f"make demo STORE={store}: the stores are sqlite and postgres")
    if store == "postgres":
        from examples.demo_nodes import demo as demo_of_nodes

        run(demo_of_nodes())
    else:
        run(demo())


if __name__ == "__main__":
    main()
