"""The edge: what every call passes (contract sections 5, 6; hazards M10, M11, F31, F32)."""

import asyncio
import contextlib

import grpc
import pytest
import structlog
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from syncline.v1 import push_service_pb2 as pb
from syncline.v1 import push_service_pb2_grpc, session_service_pb2_grpc, sync_service_pb2_grpc
from syncline.v1 import session_service_pb2 as session_pb
from syncline.v1 import sync_service_pb2 as sync_pb
from syncline_server.errors import NotFound, Unauthenticated
from syncline_server.metrics import Metrics
from syncline_server.model import Principal, Role
from syncline_server.rpc.calls import OpenStreams, allow_while, caller
from syncline_server.rpc.interceptors import Edge, EdgeServer, unwrap

WAIT = 5.0
GOOD = (("authorization", "Bearer good"),)


class Keys:
    def __init__(self):
        self.principals = {"good": Principal(key_id="k1", role=Role.ADMIN)}

    async def authenticate(self, secret):
        if secret not in self.principals:
            raise Unauthenticated("KEY_INVALID", "unknown, expired or revoked key")
        return self.principals[secret]


class Push(push_service_pb2_grpc.PushServiceServicer):
    """What a handler does is decided by each test."""

    async def Push(self, request, context):
        return await self.do(request)

    async def do(self, request):
        return pb.PushResponse(record_ids=[caller().key_id])


class Sync(sync_service_pb2_grpc.SyncServiceServicer):
    def __init__(self):
        self.closed_in = asyncio.get_running_loop().create_future()
        self.opened_in = None

    async def Subscribe(self, request, context):
        allow_while(lambda principal: principal.may_read("d"))
        self.opened_in = asyncio.current_task()
        frame = sync_pb.SubscribeResponse().SerializeToString() + request.token
        try:
            yield frame
            while request.from_now:
                yield frame
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)
            self.closed_in.set_result(asyncio.current_task())


class Session(session_service_pb2_grpc.SessionServiceServicer):
    async def StreamSession(self, request_iterator, context):
        return session_pb.StreamSessionResponse(calls=len([r async for r in request_iterator]))


class Harness:
    def __init__(self, *, max_calls=100, max_bytes=1 << 20, per_key=3):
        self.keys, self.metrics = Keys(), Metrics()
        self.streams = OpenStreams(self.keys.authenticate, per_key=per_key)
        self.edge = Edge(
            self.keys.authenticate, self.streams, self.metrics, max_calls=max_calls, max_bytes=max_bytes
        )

    async def __aenter__(self):
        self.push, self.sync = Push(), Sync()
        self.server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        edge_server = EdgeServer(self.edge, self.server)
        push_service_pb2_grpc.add_PushServiceServicer_to_server(self.push, edge_server)
        sync_service_pb2_grpc.add_SyncServiceServicer_to_server(self.sync, edge_server)
        session_service_pb2_grpc.add_SessionServiceServicer_to_server(Session(), edge_server)
        port = self.server.add_insecure_port("127.0.0.1:0")
        await self.server.start()
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        self.stub = push_service_pb2_grpc.PushServiceStub(self.channel)
        self.sync_stub = sync_service_pb2_grpc.SyncServiceStub(self.channel)
        self.session_stub = session_service_pb2_grpc.SessionServiceStub(self.channel)
        return self

    async def __aexit__(self, *exc):
        await self.channel.close()
        await self.server.stop(0.2)
        assert await self.edge.finished(within_seconds=WAIT)

    async def call(self, metadata=GOOD, **fields):
        return await self.stub.Push(pb.PushRequest(**fields), metadata=metadata, timeout=WAIT)

    async def refused(self, metadata=GOOD, **fields):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await self.call(metadata, **fields)
        return raised.value

    def count(self, method, code):
        return self.metrics.registry.get_sample_value(
            "syncline_calls_total", {"method": method, "code": code}
        )


def reason(error):
    for key, value in error.trailing_metadata():
        if key == "grpc-status-details-bin":
            info = ErrorInfo()
            Status.FromString(value).details[0].Unpack(info)
            return info.reason
    return None


def raising(error):
    async def do(request):
        raise error

    return do


@pytest.fixture
def events():
    with structlog.testing.capture_logs() as captured:
        yield captured


# -- who calls ---------------------------------------------------------------------------------------------


async def test_the_caller_is_known_to_the_handler():
    async with Harness() as h:
        assert (await h.call()).record_ids == ["k1"]
        assert h.count("PushService/Push", "OK") == 1


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ((), "KEY_MISSING"),
        ((("authorization", "Basic good"),), "KEY_MISSING"),
        ((("authorization", "Bearer other"),), "KEY_INVALID"),
        ((("authorization", "Bearer "),), "KEY_INVALID"),
    ],
)
async def test_t100_no_key_or_a_wrong_one(metadata, expected):
    async with Harness() as h:
        error = await h.refused(metadata)
        assert (error.code(), reason(error)) == (grpc.StatusCode.UNAUTHENTICATED, expected)


async def test_the_word_bearer_is_compared_without_case():
    async with Harness() as h:
        assert await h.call((("authorization", "bearer good"),))


# -- errors ------------------------------------------------------------------------------------------------


async def test_a_domain_error_becomes_its_status():
    async with Harness() as h:
        h.push.do = raising(NotFound("DATASET_NOT_FOUND", "no dataset 'x'", dataset="x"))
        error = await h.refused()
        assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "no dataset 'x'")
        assert reason(error) == "DATASET_NOT_FOUND"
        assert h.count("PushService/Push", "NOT_FOUND") == 1


async def test_a_domain_error_out_of_a_task_group_is_unwrapped(caplog):
    async def do(request):
        async with asyncio.TaskGroup(), asyncio.TaskGroup() as inner:
            inner.create_task(raising(NotFound("DATASET_NOT_FOUND", "gone"))(request))

    async with Harness() as h:
        h.push.do = do
        assert reason(await h.refused()) == "DATASET_NOT_FOUND"
    assert not caplog.records


def test_a_group_of_two_is_no_single_error():
    group = ExceptionGroup("two", [ValueError(), KeyError()])
    assert unwrap(group) is group


async def test_what_broke_stays_in_the_log_under_the_incident_that_the_caller_gets(events, caplog):
    """An unexpected error shows its text to nobody outside."""
    async with Harness() as h:
        h.push.do = raising(ValueError("postgres://user:hunter2@db"))
        error = await h.refused()
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "hunter2" not in str(error.trailing_metadata()) + error.details()
    [event] = [event for event in events if event["event"] == "rpc.failed"]
    assert event["incident_id"] in error.details()
    assert event["method"] == "PushService/Push"
    assert isinstance(event["exc_info"], ValueError)
    assert not caplog.records, "grpc must not see it"


async def test_t28_a_cancelled_error_of_our_own_does_not_hang_the_caller():
    """T28, M10: without a deadline, the answer comes at once: UNAVAILABLE, outcome unknown."""

    async def do(request):
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    async with Harness() as h:
        h.push.do = do
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            async with asyncio.timeout(1):
                await h.stub.Push(pb.PushRequest(), metadata=GOOD)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_t27_a_caller_that_leaves_cancels_the_handler_and_nothing_else():
    async with Harness() as h:
        entered, cancelled = asyncio.Event(), asyncio.Event()

        async def do(request):
            entered.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise

        h.push.do = do
        call = h.stub.Push(pb.PushRequest(), metadata=GOOD)
        async with asyncio.timeout(WAIT):
            await entered.wait()
            call.cancel()
            await cancelled.wait()
            with contextlib.suppress(asyncio.CancelledError):
                await call
            assert await h.edge.finished(within_seconds=WAIT)
        assert h.count("PushService/Push", "CANCELLED") == 1


async def test_bytes_that_are_no_message_are_refused():
    async with Harness() as h:
        raw = h.channel.unary_unary("/syncline.v1.PushService/Push")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await raw(b"\xff\xff\xff", metadata=GOOD)
        assert reason(raised.value) == "INVALID_REQUEST"


# -- how much at once ---------------------------------------------------------------------------------------


async def test_more_calls_than_allowed_are_refused_at_once_and_retriable():
    async with Harness(max_calls=2) as h:
        go = asyncio.Event()

        async def do(request):
            await go.wait()
            return pb.PushResponse()

        h.push.do = do
        waiting = [asyncio.create_task(h.call()) for _ in range(2)]
        async with asyncio.timeout(WAIT):
            while h.metrics.registry.get_sample_value("syncline_calls_in_flight") < 2:
                await asyncio.sleep(0)
        error = await h.refused()
        assert (error.code(), reason(error)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        go.set()
        await asyncio.gather(*waiting)
        assert await h.call()


async def test_a_request_heavier_than_the_budget_is_refused_before_it_is_parsed():
    async with Harness(max_bytes=1000) as h:
        assert reason(await h.refused(records=[b"x" * 2000])) == "OVERLOADED"
        assert await h.call(records=[b"x" * 500])
        assert h.metrics.registry.get_sample_value("syncline_bytes_in_flight") == 0


# -- streams -----------------------------------------------------------------------------------------------


async def test_a_stream_sends_the_bytes_that_its_handler_yields():
    async with Harness() as h:
        call = h.sync_stub.Subscribe(sync_pb.SubscribeRequest(dataset="d"), metadata=GOOD)
        async with asyncio.timeout(WAIT):
            assert await call.read() == sync_pb.SubscribeResponse()
            assert len(h.streams) == 1
            call.cancel()
            assert await h.sync.closed_in is h.sync.opened_in, "closed in the handler's own task"
            assert await h.edge.finished(within_seconds=WAIT)
        assert len(h.streams) == 0


async def test_a_peer_that_leaves_while_a_write_waits_is_no_fault_of_ours(events, caplog):
    async with Harness() as h:
        request = sync_pb.SubscribeRequest(dataset="d", from_now=True)
        call = h.sync_stub.Subscribe(request, metadata=GOOD)
        async with asyncio.timeout(WAIT):
            await call.read()
            await asyncio.sleep(0.3)  # until the windows are full and the write waits
            call.cancel()
            assert await h.sync.closed_in is h.sync.opened_in
        assert await h.edge.finished(within_seconds=WAIT)
        assert h.count("SyncService/Subscribe", "CANCELLED") == 1
    assert not [event for event in events if event["event"] == "rpc.failed"]
    assert not caplog.records, "grpc must not call it an error either"


async def test_m11_finished_waits_for_the_cleanup_of_cancelled_handlers():
    async with Harness() as h:
        call = h.sync_stub.Subscribe(sync_pb.SubscribeRequest(dataset="d"), metadata=GOOD)
        await call.read()
        await h.server.stop(None)
        assert await h.edge.finished(within_seconds=WAIT)
        assert h.sync.closed_in.done()


async def test_one_key_has_so_many_streams_and_no_more():
    async with Harness(per_key=2) as h:
        h.keys.principals["other"] = Principal(key_id="k2", role=Role.ADMIN)
        subscribe = lambda key: h.sync_stub.Subscribe(  # noqa: E731
            sync_pb.SubscribeRequest(dataset="d"), metadata=(("authorization", f"Bearer {key}"),)
        )
        calls = [subscribe("good"), subscribe("good"), subscribe("other")]
        for call in calls:
            assert await call.read() == sync_pb.SubscribeResponse()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await subscribe("good").read()
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert reason(raised.value) == "TOO_MANY_STREAMS"
        h.sync.closed_in = asyncio.Future()
        for call in calls:
            call.cancel()
            h.sync.closed_in = asyncio.Future()
            await asyncio.wait_for(h.sync.closed_in, WAIT)


async def test_g21_a_revoked_key_ends_its_streams_at_the_next_look():
    async with Harness() as h:
        call = h.sync_stub.Subscribe(sync_pb.SubscribeRequest(dataset="d"), metadata=GOOD)
        await call.read()
        await h.streams.check_keys()
        assert len(h.streams) == 1
        h.keys.principals.clear()
        await h.streams.check_keys()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await asyncio.wait_for(call.read(), WAIT)
        assert (raised.value.code(), reason(raised.value)) == (
            grpc.StatusCode.UNAUTHENTICATED,
            "KEY_INVALID",
        )
        assert h.sync.closed_in.done()
        assert len(h.streams) == 0


async def test_g21_a_key_that_may_not_read_this_any_more_ends_its_stream():
    async with Harness() as h:
        h.keys.principals["good"] = Principal(key_id="k1", role=Role.READ, patterns=("d*",))
        call = h.sync_stub.Subscribe(sync_pb.SubscribeRequest(dataset="d"), metadata=GOOD)
        await call.read()
        h.keys.principals["good"] = Principal(key_id="k1", role=Role.READ, patterns=("e*",))
        await h.streams.check_keys()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await asyncio.wait_for(call.read(), WAIT)
        assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_client_stream_is_counted_weighed_and_read():
    async with Harness(max_bytes=1000) as h:
        message = session_pb.StreamSessionRequest(source="x" * 400)
        call = h.session_stub.StreamSession(iter([message] * 5), metadata=GOOD)
        assert (await call).calls == 5
        heavy = session_pb.StreamSessionRequest(source="x" * 1400)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await h.session_stub.StreamSession(iter([heavy]), metadata=GOOD)
        assert reason(raised.value) == "OVERLOADED"
        assert h.metrics.registry.get_sample_value("syncline_bytes_in_flight") == 0


async def test_g20_a_closed_edge_refuses_what_is_new_and_lets_the_rest_finish():
    async with Harness() as h:
        go, entered = asyncio.Event(), asyncio.Event()

        async def do(request):
            entered.set()
            await go.wait()
            return pb.PushResponse(revision=7)

        h.push.do = do
        running = asyncio.create_task(h.call())
        await asyncio.wait_for(entered.wait(), WAIT)
        h.edge.close()
        error = await h.refused()
        assert (error.code(), reason(error)) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
        assert not await h.edge.finished(within_seconds=0.01)
        go.set()
        assert (await running).revision == 7
