"""What watches the server from outside: ``/metrics`` for Prometheus and ``/healthz`` for load balancers.

Plain HTTP/1.1 with two answers, one request a connection, and no keys: meant for loopback or a private network.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from syncline_server.metrics import CONTENT_TYPE, Metrics

_REQUEST_SECONDS: Final = 5.0
_REQUEST_BYTES: Final = 8 << 10
_MAX_CONNECTIONS: Final = 32

_TEXT: Final = "text/plain; charset=utf-8"


class Monitoring:
    """Answers requests. Made by ``monitoring_server``."""

    def __init__(self, metrics: Metrics, writable: Callable[[], bool]) -> None:
        self._metrics = metrics
        self._writable = writable
        self._open = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read one request, answer it, close."""
        self._open += 1
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                if self._open <= _MAX_CONNECTIONS:
                    request = await reader.readuntil(b"\r\n\r\n")
                    writer.write(self._respond(request))
                    await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass  # whoever it was did not speak HTTP or has left
        finally:
            self._open -= 1
            writer.close()

    def _respond(self, request: bytes) -> bytes:
        method, _, rest = request.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if method not in {b"GET", b"HEAD"}:
            return _response("405 Method Not Allowed", _TEXT, b"only GET\n", method)
        if path == b"/metrics":
            return _response("200 OK", CONTENT_TYPE, self._metrics.exposition(), method)
        if path == b"/healthz":
            if self._writable():
                return _response("200 OK", _TEXT, b"ok\n", method)
            return _response("503 Service Unavailable", _TEXT, b"writes are refused; reads go on\n", method)
        return _response("404 Not Found", _TEXT, b"here are /metrics and /healthz\n", method)


@asynccontextmanager
async def monitoring_server(
    host: str, port: int, metrics: Metrics, writable: Callable[[], bool]
) -> AsyncIterator[str]:
    """Listen while the block lasts; yields the address. Raises OSError when the address cannot be listened on."""
    monitoring = Monitoring(metrics, writable)
    try:
        server = await asyncio.start_server(monitoring.answer, host, port, limit=_REQUEST_BYTES)
    except OSError as error:
        raise OSError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; "
            "choose another address with --http, or none with --http ''"
        ) from None
    async with server:
        bound: int = server.sockets[0].getsockname()[1]
        yield f"[{host}]:{bound}" if ":" in host else f"{host}:{bound}"


def _response(status: str, content_type: str, body: bytes, method: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
        "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
    ).encode()
    return head if method == b"HEAD" else head + body
