"""What callers are told when the engine of a store is in trouble; backends decide which trouble it is."""

from typing import Final

from syncline_server.errors import ResourceExhausted, Unavailable

RETRY_FULL_SECONDS: Final = 5.0
RETRY_SECONDS: Final = 1.0


def store_full(detail: str) -> ResourceExhausted:
    """The disk has no room for a write."""
    return ResourceExhausted(
        "STORE_FULL",
        f"the disk of the store is full ({detail}); nothing was done; reads go on",
        retry_after_seconds=RETRY_FULL_SECONDS,
    )


def store_unavailable(detail: str) -> Unavailable:
    """Nobody knows what became of the write."""
    return Unavailable(
        "STORE_UNAVAILABLE",
        f"the store cannot answer ({detail}); retry with the same request id",
        retry_after_seconds=RETRY_SECONDS,
    )
