"""The running server among strangers: what it tells of itself, and what it lets be done to it (T60, T98 to T108)."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from support.server_process import server_process
from support.wire import Refused, channel_to, wire_to
from syncline.v1 import catalog_service_pb2 as catalog
from syncline.v1 import push_service_pb2 as push
from syncline.v1 import server_service_pb2 as server_pb2
from syncline.v1 import sync_service_pb2 as sync
from syncline_server.settings import load_settings

SOURCE = "datasets/books/sources/default"


def get(address, path):
    with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as response:
        return response.status, response.read().decode()


# -- health, reflection, monitoring ------------------------------------------------------------------------


async def test_health_of_each_service_and_of_writes_needs_no_key(tmp_path):
    async with server_process(tmp_path) as server, channel_to(server) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "syncline.v1.PushService", "syncline.v1.SyncService", "syncline.writes"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING, service


async def test_reflection_is_off_unless_asked_for(tmp_path):
    def services(address):
        with grpc.insecure_channel(address) as channel:
            return set(ProtoReflectionDescriptorDatabase(channel).get_services())

    async with server_process(tmp_path / "off") as server:
        with pytest.raises(grpc.RpcError) as raised:
            await asyncio.to_thread(services, server.address)
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
    async with server_process(tmp_path / "on", args=["--reflection"]) as server:
        assert "syncline.v1.PushService" in await asyncio.to_thread(services, server.address)


async def test_metrics_and_healthz(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        http = f"127.0.0.1:{probe.getsockname()[1]}"
    async with server_process(tmp_path, env={"SYNCLINE_HTTP": http}) as server, channel_to(server) as channel:
        wire = wire_to(server, channel)
        await wire.make_dataset()
        records = [b'{"isbn":"%d"}' % i for i in range(7)]
        await wire.call(wire.push.Push, push.PushRequest(source=SOURCE, records=records))
        await wire.call(wire.push.Push, push.PushRequest(source=SOURCE, records=records))
        await wire.refused(wire.push.Push, push.PushRequest(source=SOURCE, records=[b"{}"]))
        stream = wire.subscribe(sync.SubscribeRequest(dataset="datasets/books"))
        await stream.read()
        assert await asyncio.to_thread(get, http, "/healthz") == (200, "ok\n")
        _, text = await asyncio.to_thread(get, http, "/metrics")
        figures = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        assert figures['syncline_commits_total{outcome="changed"}'] == "1.0"
        assert figures['syncline_commits_total{outcome="unchanged"}'] == "1.0"
        assert figures['syncline_records_total{status="created"}'] == "7.0"
        assert figures['syncline_records_total{status="unchanged"}'] == "7.0"
        assert figures['syncline_calls_total{code="INVALID_ARGUMENT",method="PushService/Push"}'] == "1.0"
        assert figures["syncline_subscribers"] == "1.0"
        assert figures["syncline_writable"] == "1.0"
        assert float(figures["syncline_fsync_seconds_sum"]) > 0
        with pytest.raises(urllib.error.HTTPError, match="404"):
            await asyncio.to_thread(get, http, "/")
        stream.cancel()


async def test_t108_names_chosen_by_callers_make_no_metric(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        http = f"127.0.0.1:{probe.getsockname()[1]}"
    async with server_process(tmp_path, env={"SYNCLINE_HTTP": http}) as server, channel_to(server) as channel:
        wire = wire_to(server, channel)

        async def series():
            _, text = await asyncio.to_thread(get, http, "/metrics")
            return sum(not line.startswith("#") for line in text.splitlines())

        async def use(name):
            await wire.make_dataset(name)
            await wire.call(
                wire.push.Push,
                push.PushRequest(source=f"datasets/{name}/sources/default", records=[b'{"isbn":"1"}']),
            )

        await use("first")
        before = await series()
        for index in range(20):
            await use(f"name{index}")
        assert await series() == before


# -- abuse -------------------------------------------------------------------------------------------------


async def test_t98_a_bomb_is_refused_without_taking_its_size_in_memory(tmp_path):
    """T98, M7: 128 MiB of zeros, gzipped to a few hundred KiB, and 48 MiB plain."""
    async with server_process(tmp_path) as server, channel_to(server) as channel:
        process = psutil.Process(server.pid)
        path = "/syncline.v1.PushService/Push"
        wire = wire_to(server, channel)
        await wire.make_dataset()
        before = process.memory_info().rss
        bomb = channel.unary_unary(path)
        for payload, compression in (
            (bytes(128 << 20), grpc.Compression.Gzip),
            (os.urandom(1 << 20) * 48, grpc.Compression.NoCompression),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await bomb(payload, metadata=wire.metadata, compression=compression, timeout=30)
            assert raised.value.code() in {
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                grpc.StatusCode.UNAVAILABLE,
            }, raised.value
        peak = _peak_kib(server.pid)
        assert peak * 1024 - before < 20 << 20
        assert await wire.call(wire.push.Push, push.PushRequest(source=SOURCE, records=[b'{"isbn":"1"}']))


def _peak_kib(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1])
    raise AssertionError("no VmHWM")


async def test_t99_a_ping_flood_is_cut_off_and_the_sdk_interval_is_not(tmp_path):
    """T99: pings more often than allowed end the connection; the SDK's interval is above what is allowed."""
    env = {"SYNCLINE_CLIENT_PING_SECONDS": "5", "SYNCLINE_CHECKPOINT_SECONDS": "60"}
    flood = [
        ("grpc.keepalive_time_ms", 1000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_time_between_pings_ms", 100),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    async with server_process(tmp_path, env=env) as server:
        async with channel_to(server) as channel:
            await wire_to(server, channel).make_dataset()
        async with channel_to(server, *flood) as channel:
            stream = wire_to(server, channel).subscribe(sync.SubscribeRequest(dataset="datasets/books"))
            await stream.read()
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await asyncio.wait_for(stream.read(), 30)
            assert "too_many_pings" in Refused(raised.value).message.lower().replace(" ", "_") or (
                raised.value.code() is grpc.StatusCode.UNAVAILABLE
            )
    assert load_settings().client_ping_seconds < 60 == load_settings().keepalive_seconds


SUBSCRIBER = """
import asyncio, sys
from support.wire import *
from syncline.v1.sync_service_pb2 import SubscribeRequest

async def main(address, key):
    async with grpc.aio.insecure_channel(address) as channel:
        stream = Wire(channel, key).subscribe(SubscribeRequest(dataset="datasets/books"))
        while True:
            await stream.read()
            print("read", flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_t60_m9_a_subscriber_that_stands_still_is_dropped_by_keepalive(tmp_path):
    """T60, M9: a stopped process answers no ping; its stream is gone after the two times together."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        http = f"127.0.0.1:{probe.getsockname()[1]}"
    env = {
        "SYNCLINE_HTTP": http,
        "SYNCLINE_KEEPALIVE_SECONDS": "1",
        "SYNCLINE_KEEPALIVE_TIMEOUT_SECONDS": "1",
        "SYNCLINE_CLIENT_PING_SECONDS": "1",
    }

    async def subscribers():
        _, text = await asyncio.to_thread(get, http, "/metrics")
        return next(line for line in text.splitlines() if line.startswith("syncline_subscribers "))

    async with server_process(tmp_path, env=env) as server:
        async with channel_to(server) as channel:
            await wire_to(server, channel).make_dataset()
        path = str(Path(__file__).parents[1])
        client = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            SUBSCRIBER,
            server.address,
            server.key,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": path},
        )
        try:
            assert await asyncio.wait_for(client.stdout.readline(), 30) == b"read\n"
            assert await subscribers() == "syncline_subscribers 1.0"
            client.send_signal(signal.SIGSTOP)
            async with asyncio.timeout(10):
                while await subscribers() != "syncline_subscribers 0.0":
                    await asyncio.sleep(0.1)
        finally:
            client.kill()
            await client.communicate()


async def test_t107_names_cannot_break_the_log(tmp_path):
    async with server_process(tmp_path) as server, channel_to(server) as channel:
        wire = wire_to(server, channel)
        evil = 'datasets/x\n{"event":"forged"}\x1b[31m\u202e'
        await wire.refused(wire.catalog.GetDataset, catalog.GetDatasetRequest(name=evil))
        await server.stop()
        for line in server.log.splitlines():
            event = json.loads(line)
            assert event["event"] != "forged"


async def test_t102_no_secret_in_log_or_metrics(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        http = f"127.0.0.1:{probe.getsockname()[1]}"
    env = {"SYNCLINE_HTTP": http, "SYNCLINE_LOG_LEVEL": "debug"}
    async with server_process(tmp_path, env=env) as server, channel_to(server) as channel:
        wire = wire_to(server, channel)
        await wire.make_dataset()
        reader = await wire.make_key("READ", datasets=["*"])
        await reader.call(reader.server.GetServerInfo, server_pb2.GetServerInfoRequest())
        await wire.as_key(reader.secret + "x").refused(
            wire.server.GetServerInfo, server_pb2.GetServerInfoRequest()
        )
        canary = b'{"isbn":"canary-4711"}'
        await wire.call(wire.push.Push, push.PushRequest(source=SOURCE, records=[canary]))
        await wire.refused(wire.push.Push, push.PushRequest(source=SOURCE, records=[b'{"canary-4711":1}']))
        _, text = await asyncio.to_thread(get, http, "/metrics")
        await server.stop()
        for secret in (server.key, reader.secret, "canary-4711"):
            assert secret not in server.log + text
            assert secret.rpartition("_")[2] not in server.log + text
