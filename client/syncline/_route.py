"""Several servers of one store: which one a client talks to, and when it goes to the next.

gRPC can choose between the addresses of one name, or between numbers; not between names, each with a certificate of
its own. So each server has a channel, and a call goes to the one that is this client's turn. All its calls and streams
go there: calls of one session, and reads after writes, are fastest where the ones before them were.
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import grpc
import grpc.aio

SETTLE_SECONDS: Final = 0.2
"""Many calls fail together when a server goes; only the first of them moves the client on."""

_MAY_ANSWER: Final = frozenset({grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.IDLE})


class Route:
    """Whose turn it is, of so many servers. Begins with any of them, so that clients spread."""

    __slots__ = ("_moved_at", "count", "turn")

    def __init__(self, count: int) -> None:
        self.count = count
        self.turn = random.randrange(count)  # noqa: S311 - spreads load, hides nothing
        self._moved_at = float("-inf")

    def leave(self) -> None:
        """Hear that a call failed, or that nothing is heard any more: go to the next one."""
        if time.monotonic() - self._moved_at >= SETTLE_SECONDS:
            self.go_to((self.turn + 1) % self.count)

    def go_to(self, turn: int) -> None:
        """Go to this one."""
        self.turn = turn
        self._moved_at = time.monotonic()


class RoutedChannel(grpc.aio.Channel):
    """Channels to several servers as one: each call takes the one whose turn it is, unless that is known to be away."""

    def __init__(self, channels: Sequence[grpc.aio.Channel], route: Route) -> None:
        self._channels = channels
        self._route = route

    def _choose(self) -> int:
        route, states = self._route, [channel.get_state() for channel in self._channels]
        if states[route.turn] in _MAY_ANSWER:
            return route.turn
        for step in range(1, route.count):
            following = (route.turn + step) % route.count
            if states[following] in _MAY_ANSWER:
                route.go_to(following)
                return following
        if states[route.turn] is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            route.leave()
        return route.turn

    def _method(self, kind: str, *args: Any, **kwargs: Any) -> Any:
        offered: list[Callable[..., Any]] = [
            getattr(channel, kind)(*args, **kwargs) for channel in self._channels
        ]

        def call(*given: Any, **named: Any) -> Any:
            return offered[self._choose()](*given, **named)

        return call

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        """See grpc.aio.Channel."""
        return self._method("unary_unary", *args, **kwargs)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        """See grpc.aio.Channel."""
        return self._method("unary_stream", *args, **kwargs)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        """See grpc.aio.Channel."""
        return self._method("stream_unary", *args, **kwargs)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        """See grpc.aio.Channel."""
        return self._method("stream_stream", *args, **kwargs)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """See grpc.aio.Channel; of the one whose turn it is."""
        return self._channels[self._route.turn].get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """See grpc.aio.Channel; of the one whose turn it is."""
        await self._channels[self._route.turn].wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """See grpc.aio.Channel; of the one whose turn it is."""
        await self._channels[self._route.turn].channel_ready()

    async def close(self, grace: float | None = None) -> None:
        """Close them all."""
        await asyncio.gather(*(channel.close(grace) for channel in self._channels))

    async def __aenter__(self) -> "RoutedChannel":
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()
