"""Which of several servers is used, and when the next one is."""

import contextlib

import grpc.aio
import pytest

import syncline
from syncline import _route
from syncline._route import Route


class Clock:
    now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(_route, "time", clock)
    return clock


def test_calls_that_fail_together_move_on_once(clock):
    route = Route(3)
    first = route.turn
    for _ in range(20):
        route.leave()
    assert route.turn == (first + 1) % 3
    clock.now += _route.SETTLE_SECONDS
    route.leave()
    assert route.turn == (first + 2) % 3


def test_clients_spread():
    assert {Route(3).turn for _ in range(200)} == {0, 1, 2}


@contextlib.asynccontextmanager
async def leaving():
    """A server that refuses every call, because it is being stopped."""

    class Refusing(grpc.GenericRpcHandler):
        calls = 0

        def service(self, details):
            async def refuse(_request, context):
                Refusing.calls += 1
                await context.abort(grpc.StatusCode.UNAVAILABLE, "leaving")

            return grpc.unary_unary_rpc_method_handler(refuse)

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Refusing(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}", Refusing
    finally:
        await server.stop(0)


async def test_a_server_that_answers_but_refuses_is_left(shared_server):
    """Its connection is good, so only its answers can tell."""
    async with leaving() as (address, refusing):
        addresses = [address, shared_server.address]
        async with syncline.connect(addresses, key=shared_server.key) as client:
            client._endpoint.route.turn = 0
            await client.server_info()
            assert refusing.calls == 1
            for _ in range(5):
                await client.server_info()
            assert refusing.calls == 1


async def test_servers_that_are_all_away_are_named():
    async with syncline.connect(["127.0.0.1:1", "localhost:2"], key="k") as client:
        with pytest.raises(syncline.Unavailable, match=r"127\.0\.0\.1:1, localhost:2.*nothing listens"):
            await client.server_info()
