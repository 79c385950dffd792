"""Syncline itself: the real server in a process of its own, through the SDK that users have."""

import contextlib
import importlib.metadata
import os
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import syncline
from bench.processes import free_port, running_server
from bench.records import SCHEMA, Item, batches
from bench.systems.base import CALL_RECORDS, Client, Running, System, one_a_stream, run_limited
from syncline.v1.sync_service_pb2 import SyncRequest

_STREAMS_PER_KEY = 5_000
"""rss_idle_stream opens more than the default allows to one key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """What a resumed copy got, and where it stands."""

    changes: syncline.ChangeBatch[Any]
    token: bytes


class SynclineClient(Client):
    """The SDK."""

    def __init__(self, client: syncline.Client) -> None:
        self._client = client

    async def create(self, collection: str) -> None:
        """A dataset with a key and a schema."""
        await self._client.create_dataset(collection, identity=syncline.by_key("sku"), schema=SCHEMA)

    async def push_bulk(self, collection: str, items: list[Item]) -> None:
        """1,000 records a call."""
        dataset = self._client.dataset(collection)
        await run_limited(partial(dataset.push, batch) for batch in batches(items, CALL_RECORDS))

    async def push_one(self, collection: str, item: Item) -> None:
        """A push of one record."""
        await self._client.dataset(collection).push([item])

    async def copy(self, collection: str) -> dict[str, bytes]:
        """The feed from nothing to its first checkpoint, which says how many records there are."""
        copy: dict[str, bytes] = {}
        async with self._client.dataset(collection).changes() as feed:
            async for part in feed.batches():
                if isinstance(part, syncline.ChangeBatch):
                    copy.update(zip(part.record_ids, part.json, strict=True))
                elif isinstance(part, syncline.Checkpoint):
                    assert part.record_count == len(copy)
                    return copy
        raise RuntimeError("the feed ended before the copy was complete")

    async def watch(self, collection: str, subscriptions: int = 1) -> AsyncIterator[list[bytes]]:
        """The feed of a dataset that is empty: its first checkpoint tells that it follows."""
        one_a_stream(subscriptions)
        async with self._client.dataset(collection).changes() as feed:
            async for part in feed.batches():
                if isinstance(part, syncline.ChangeBatch):
                    yield part.json
                elif isinstance(part, syncline.Checkpoint):
                    yield []

    def replica(self, collection: str, path: Path) -> syncline.Replica[Any]:
        """A replica in a file, to be entered."""
        return self._client.dataset(collection).replica(path)

    async def push_revision(self, collection: str, item: Item) -> int:
        """A push of one record; the revision that it made."""
        return (await self._client.dataset(collection).push([item])).revision

    async def replace(self, collection: str, items: Iterable[Item]) -> None:
        """One replace session with all of them."""
        async with self._client.dataset(collection).session("replace") as session:
            await session.upsert(items)

    async def head_token(self, collection: str) -> bytes:
        """The token of a complete copy."""
        return (await self.resume(collection, None)).token

    async def resume(self, collection: str, token: bytes | None) -> Resumed:
        """Everything that changed since the token, in pages."""
        page = await self._client.dataset(collection).sync(token, all=True)
        return Resumed(changes=page.changes, token=page.token)

    async def resume_bytes(self, collection: str, token: bytes) -> int:
        """Size of the answers of the same calls, as protobuf, without the frames of HTTP/2."""
        connection = self._client.connection
        request = SyncRequest(dataset=f"datasets/{collection}", token=token)
        size = 0
        while True:
            response = await connection.sync.Sync(request, metadata=connection.caller.metadata)
            size += int(response.ByteSize())
            if any(event.HasField("checkpoint") for event in response.events):
                return size
            request.token = response.token


class Syncline(System):
    """One process with its default settings."""

    name = "syncline"
    durability = "fsync before the answer"

    def __init__(
        self, *, command_prefix: Sequence[str] = (), store: str = "", page_cache: bool = True
    ) -> None:
        """``store``: where in PostgreSQL it is; empty: a file of SQLite.

        Without ``page_cache`` each copy is read from the store, however soon after another one.
        """
        self._prefix = command_prefix
        self._settings = {"SYNCLINE_STORE": store}
        if not page_cache:
            self._settings["SYNCLINE_PAGE_CACHE_BYTES"] = "0"

    def version(self) -> str:
        """Of the distribution."""
        return importlib.metadata.version("syncline")

    @contextlib.asynccontextmanager
    async def serve(self, directory: Path) -> AsyncIterator[Running]:
        """Run ``syncline-server serve``."""
        port = free_port()
        env = {name: value for name, value in os.environ.items() if not name.startswith("SYNCLINE_")}
        data = directory / "syncline"
        env |= {
            "SYNCLINE_DATA": str(data),
            "SYNCLINE_LISTEN": f"127.0.0.1:{port}",
            "SYNCLINE_HTTP": "",
            "SYNCLINE_STREAMS_PER_KEY": str(_STREAMS_PER_KEY),
        } | self._settings
        command = [*self._prefix, str(Path(sys.executable).with_name("syncline-server")), "serve"]
        async with running_server(command, port=port, log=directory / "syncline.log", env=env) as process:
            yield Running(address=f"127.0.0.1:{port}{data / 'admin.key'}", pid=process.pid)

    @contextlib.asynccontextmanager
    async def connect_sdk(self, address: str) -> AsyncIterator[SynclineClient]:
        """The SDK's client. The address holds the path of the admin key after the port."""
        endpoint, _, key_file = address.partition("/")
        key = Path(f"/{key_file}").read_text()
        async with syncline.connect(endpoint, key=key) as client:
            yield SynclineClient(client)

    @contextlib.asynccontextmanager
    async def connect(self, address: str) -> AsyncIterator[Client]:
        """A connection of its own."""
        async with self.connect_sdk(address) as client:
            yield client
