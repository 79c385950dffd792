"""etcd: the nearest in protocol (gRPC, revisions, watches) and in durability (fsync before the answer)."""

import asyncio
import contextlib
import shutil
import subprocess
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import grpc.aio

from bench.etcd import etcd_pb2 as pb
from bench.processes import free_port, running_server
from bench.records import Item, batches, encode_item
from bench.systems.base import CALL_RECORDS, Client, Running, System, Unavailable, run_limited

_OPTIONS = [
    ("grpc.max_receive_message_length", 256 << 20),
    ("grpc.use_local_subchannel_pool", 1),  # a connection for each channel, as separate clients have
]


def _range_end(prefix: bytes) -> bytes:
    return prefix[:-1] + bytes([prefix[-1] + 1])


class EtcdClient(Client):
    """etcd's gRPC API through grpc.aio."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._txn = channel.unary_unary(
            "/etcdserverpb.KV/Txn", pb.TxnRequest.SerializeToString, pb.TxnResponse.FromString
        )
        self._put = channel.unary_unary(
            "/etcdserverpb.KV/Put", pb.PutRequest.SerializeToString, pb.PutResponse.FromString
        )
        self._range = channel.unary_unary(
            "/etcdserverpb.KV/Range", pb.RangeRequest.SerializeToString, pb.RangeResponse.FromString
        )
        self._watch = channel.stream_stream(
            "/etcdserverpb.Watch/Watch", pb.WatchRequest.SerializeToString, pb.WatchResponse.FromString
        )

    async def create(self, collection: str) -> None:
        """A prefix needs no making."""

    async def push_bulk(self, collection: str, items: list[Item]) -> None:
        """Transactions of 1,000 puts."""
        await run_limited(
            partial(self._push_batch, collection, batch) for batch in batches(items, CALL_RECORDS)
        )

    async def _push_batch(self, collection: str, items: list[Item]) -> None:
        puts = [
            pb.RequestOp(
                request_put=pb.PutRequest(key=f"{collection}/{item['sku']}".encode(), value=encode_item(item))
            )
            for item in items
        ]
        await self._txn(pb.TxnRequest(success=puts))

    async def push_one(self, collection: str, item: Item) -> None:
        """A put."""
        await self._put(pb.PutRequest(key=f"{collection}/{item['sku']}".encode(), value=encode_item(item)))

    async def copy(self, collection: str) -> dict[str, bytes]:
        """One range: with pages etcd counts what is left for each of them, at half the speed."""
        prefix = f"{collection}/".encode()
        skip = len(prefix)
        page = await self._range(pb.RangeRequest(key=prefix, range_end=_range_end(prefix)))
        return {entry.key[skip:].decode(): entry.value for entry in page.kvs}

    async def watch(self, collection: str, subscriptions: int = 1) -> AsyncIterator[list[bytes]]:
        """So many watches of the prefix on a stream of their own."""
        prefix = f"{collection}/".encode()
        call = self._watch()
        beginning = subscriptions
        try:
            create = pb.WatchCreateRequest(key=prefix, range_end=_range_end(prefix))
            for _ in range(subscriptions):
                await call.write(pb.WatchRequest(create_request=create))
            async for response in call:
                if response.created:
                    beginning -= 1
                    if not beginning:
                        yield []
                else:
                    yield [event.kv.value for event in response.events]
        finally:
            call.cancel()


class Etcd(System):
    """One node, default settings but for the size of a transaction."""

    name = "etcd"
    durability = "fsync before the answer"

    def version(self) -> str:
        """First line of ``etcd --version``."""
        if shutil.which("etcd") is None:
            raise Unavailable("no `etcd` on PATH (Debian: apt-get install etcd-server)")
        output = subprocess.run(["etcd", "--version"], capture_output=True, text=True, check=True)
        return output.stdout.splitlines()[0].removeprefix("etcd Version: ")

    @contextlib.asynccontextmanager
    async def serve(self, directory: Path) -> AsyncIterator[Running]:
        """Run one."""
        port, peer_port = free_port(), free_port()
        command = [
            "etcd",
            f"--data-dir={directory / self.name}",
            f"--listen-client-urls=http://127.0.0.1:{port}",
            f"--advertise-client-urls=http://127.0.0.1:{port}",
            f"--listen-peer-urls=http://127.0.0.1:{peer_port}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{peer_port}",
            f"--initial-cluster=default=http://127.0.0.1:{peer_port}",
            f"--max-txn-ops={CALL_RECORDS}",
            "--log-level=error",
            "--logger=zap",
        ]
        async with running_server(command, port=port, log=directory / f"{self.name}.log") as process:
            address = f"127.0.0.1:{port}"
            async with self.connect(address) as client:
                await client.push_one("ready", {"sku": "ready"})  # it has elected itself
            yield Running(address=address, pid=process.pid)

    @contextlib.asynccontextmanager
    async def connect(self, address: str) -> AsyncIterator[Client]:
        """A channel of its own."""
        async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
            await asyncio.wait_for(channel.channel_ready(), 15)
            yield EtcdClient(channel)
