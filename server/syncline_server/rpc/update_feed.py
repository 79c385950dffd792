"""UpdateFeed and ListHeads: many datasets at once."""

import asyncio
import random
import re
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, Final

from syncline.v1 import update_feed_pb2
from syncline_server.catalog.catalog import Catalog
from syncline_server.clock import Clock
from syncline_server.errors import InvalidArgument, PermissionDenied, Unavailable
from syncline_server.feed.delivery import DeliveryMode, Wanted
from syncline_server.feed.feed import Feed
from syncline_server.feed.streams import FeedStream
from syncline_server.feed.uptake import Uptake
from syncline_server.filters.selection import Selection, parse_selection
from syncline_server.model import Principal, Role
from syncline_server.rpc.calls import allow_while, caller
from syncline_server.rpc.convert import Problems, begin, check_revision, dataset_of, duration_us, enum_of
from syncline_server.rpc.parts import ProtobufPartEncoder

MAX_ACTIONS: Final = 10_000
MAX_CREDIT_BYTES: Final = 1 << 30
SHORTEST_INTERVAL_SECONDS: Final = 0.01
LONGEST_INTERVAL_SECONDS: Final = 3_600.0
RETURN_SECONDS: Final = (0.1, 1.0)
"""Subscribers of a server that goes come back within this, not all in the same moment."""

_REPLICA_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
_PREFIX: Final = re.compile(r"(?:[a-z][a-z0-9._-]{0,62})?")


class UpdateFeedMethod:
    """The method, as SyncService delegates it."""

    def __init__(
        self, catalog: Catalog, feed: Feed, clock: Clock, uptake: Uptake, *, stream_age_seconds: float
    ) -> None:
        """``stream_age_seconds``: streams are ended in an orderly way at this age, ± 10 %; 0: never."""
        self._catalog = catalog
        self._feed = feed
        self._clock = clock
        self._uptake = uptake
        self._stream_age_seconds = stream_age_seconds

    async def update_feed(self, requests: AsyncIterator[Any]) -> AsyncGenerator[bytes]:
        """Serve one stream."""
        principal = caller()
        check_reads(principal)
        retry_seconds = random.uniform(*RETURN_SECONDS)  # noqa: S311 - spreads load, hides nothing
        stream = FeedStream(
            self._feed,
            self._catalog,
            ProtobufPartEncoder(retry_seconds=retry_seconds),
            self._clock,
            principal,
            uptake=self._uptake,
        )
        allow_while(stream.still_allowed)
        reader = asyncio.create_task(_read(requests, stream))
        age_seconds = self._stream_age_seconds * random.uniform(0.9, 1.1)  # noqa: S311 - as above
        timer = asyncio.get_running_loop().call_later(age_seconds, stream.drain) if age_seconds else None
        try:
            async with aclosing(stream.messages()) as messages:
                async for message in messages:
                    yield message
                    del message  # not kept while it waits for the next one
        finally:
            if timer is not None:
                timer.cancel()
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            is_over = stream.is_over
            await stream.aclose()
        if is_over:
            return
        if self._feed.is_draining:
            why = ("SHUTTING_DOWN", "the server is shutting down; connect again with the last tokens")
        else:
            why = ("MOVED", "this stream has had its time; connect again with the last tokens")
        raise Unavailable(*why, retry_after_seconds=retry_seconds)


async def _read(requests: AsyncIterator[Any], stream: FeedStream) -> None:
    """Do what the client asks, in order. One that asks nothing more goes on getting what it asked for."""
    try:
        async for request in requests:
            await _act_all(request.actions, stream)
            del request  # not kept while the next one is waited for: ten thousand actions are 2 MB
        stream.ask_no_more()
    except Exception as error:  # noqa: BLE001 - told by the task that writes
        stream.fail(error)


async def _act_all(actions: Sequence[update_feed_pb2.FeedAction], stream: FeedStream) -> None:
    if len(actions) > MAX_ACTIONS:
        raise _wrong("actions", f"are {len(actions)}; a message has {MAX_ACTIONS} at most")
    for index, action in enumerate(actions):
        await stream.room()
        await _act(action, f"actions[{index}]", stream)


async def _act(action: update_feed_pb2.FeedAction, path: str, stream: FeedStream) -> None:
    kind = action.WhichOneof("action")
    if kind is None:
        raise _wrong(path, "asks nothing that this server knows")
    what = getattr(action, kind)
    if what.subscription_id < 1:
        raise _wrong(f"{path}.{kind}.subscription_id", "must be above 0")
    if kind == "remove":
        stream.remove(what.subscription_id)
        return
    try:
        if kind == "add":
            await stream.add(_wanted(what))
        elif kind == "ack":
            _acknowledge(what, stream)
        else:
            _grant(what, stream)
    except InvalidArgument as error:
        stream.refuse(what.subscription_id, error)


def _acknowledge(ack: update_feed_pb2.AckCheckpoint, stream: FeedStream) -> None:
    problems = Problems()
    dataset_id = dataset_of(ack.dataset, problems)
    problems.raise_any()
    stream.acknowledge(ack.subscription_id, dataset_id, ack.revision)


def _grant(credit: update_feed_pb2.GrantCredit, stream: FeedStream) -> None:
    if not 0 < credit.bytes <= MAX_CREDIT_BYTES:
        raise _wrong("bytes", f"must be from 1 to {MAX_CREDIT_BYTES}")
    stream.grant(credit.subscription_id, credit.bytes)


def _wanted(add: update_feed_pb2.AddSubscription) -> Wanted:
    """What is asked for. Raises InvalidArgument(INVALID_REQUEST, FILTER_INVALID)."""
    problems = begin(add)
    check_revision(add.min_revision, problems)
    dataset_id, prefix = _datasets(add.dataset, problems)
    whole = add.dataset.endswith("*")
    if whole and (add.token or add.min_revision):
        problems.add("dataset", "is a prefix, which goes with neither token nor min_revision")
    if add.tokens and not whole:
        problems.add("tokens", "go with a prefix; one dataset has a token")
    if add.from_now and (add.token or add.tokens):
        problems.add("from_now", "does not go with tokens")
    if add.replica_id and not _REPLICA_ID.fullmatch(add.replica_id):
        problems.add("replica_id", "must be 1 to 128 characters: letters, digits and `._-`")
    if not 0 <= add.credit_bytes <= MAX_CREDIT_BYTES:
        problems.add("credit_bytes", f"must be from 0 to {MAX_CREDIT_BYTES}")
    tokens = {}
    for name, token in add.tokens.items():
        named = dataset_of(name, problems, "tokens")
        if named and not named.startswith(prefix):
            problems.add("tokens", f"names {named!r}, which does not begin with the prefix")
        tokens[named] = token
    mode, min_interval_seconds = _mode(add, problems)
    problems.raise_any()
    return Wanted(
        subscription_id=add.subscription_id,
        dataset_id=dataset_id,
        prefix=prefix,
        token=add.token,
        tokens=tokens or None,
        from_now=add.from_now,
        selection=_selection(add),
        mode=mode,
        min_interval_seconds=min_interval_seconds,
        min_revision=add.min_revision,
        replica_id=add.replica_id,
        credit_bytes=add.credit_bytes,
    )


def _selection(add: update_feed_pb2.AddSubscription) -> Selection | None:
    return parse_selection(add.filter, tuple(add.read_mask.paths))


def _datasets(name: str, problems: Problems) -> tuple[str, str]:
    """Id of a dataset, or the prefix of many."""
    if not name.endswith("*"):
        return sys.intern(dataset_of(name, problems)), ""  # there may be many of the same
    collection, _, prefix = name[:-1].partition("/")
    if collection != "datasets":
        problems.add("dataset", f"is {name[:80]!r} (expected datasets/{{dataset}} or datasets/{{prefix}}*)")
    check_prefix(prefix, problems, "dataset")
    return "", prefix


def check_prefix(prefix: str, problems: Problems, field: str) -> None:
    """Note a prefix that no dataset id can begin with."""
    if not _PREFIX.fullmatch(prefix):
        problems.add(field, "must be how ids of datasets begin: lower-case letters, digits and `._-`")


def _mode(add: update_feed_pb2.AddSubscription, problems: Problems) -> tuple[DeliveryMode, float]:
    mode = enum_of(DeliveryMode, add.delivery_mode, problems, "delivery_mode") or DeliveryMode.LATEST
    if mode is not DeliveryMode.MAX_RATE:
        if add.HasField("min_interval"):
            problems.add("min_interval", "goes with MAX_RATE alone")
        return mode, 0.0
    seconds = duration_us(add.min_interval) / 1e6
    if not SHORTEST_INTERVAL_SECONDS <= seconds <= LONGEST_INTERVAL_SECONDS:
        problems.add("min_interval", "is required with MAX_RATE, from 10 ms to 1 h")
    return mode, seconds


def check_reads(principal: Principal) -> None:
    """Raise PermissionDenied for a key that may read nothing."""
    if principal.role is Role.PUSH:
        raise PermissionDenied("PERMISSION_DENIED", "this needs a READ or an ADMIN key")


def _wrong(field: str, problem: str) -> InvalidArgument:
    return InvalidArgument("INVALID_REQUEST", f"{field} {problem}", fields=[(field, problem)])
