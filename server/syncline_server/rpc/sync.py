"""SyncService: exact copies. What it sends was serialised once, by the feed, for everybody."""

# ruff: noqa: N802 - methods are named by the proto

import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Final

from syncline.v1 import sync_service_pb2 as pb
from syncline.v1.sync_service_pb2_grpc import SyncServiceServicer
from syncline_server.catalog.catalog import Catalog
from syncline_server.errors import Unavailable
from syncline_server.feed.feed import Feed
from syncline_server.filters.selection import parse_selection
from syncline_server.rpc.calls import allow_while, caller
from syncline_server.rpc.convert import begin, check_may_read, check_revision, dataset_of, wait_seconds
from syncline_server.rpc.heads import ListHeadsMethod
from syncline_server.rpc.replicas import ReplicaMethods
from syncline_server.rpc.update_feed import UpdateFeedMethod

RETURN_SECONDS: Final = 1.0
"""Subscribers of a server that goes come back within this, not all in the same moment."""


class SyncService(SyncServiceServicer):
    """See the proto."""

    def __init__(
        self,
        catalog: Catalog,
        feed: Feed,
        updates: UpdateFeedMethod,
        heads: ListHeadsMethod,
        replicas: ReplicaMethods,
        *,
        revision_wait_seconds: float,
    ) -> None:
        self._catalog = catalog
        self._feed = feed
        self._updates = updates
        self._heads = heads
        self._replicas = replicas
        self._revision_wait_seconds = revision_wait_seconds

    async def Sync(self, request: pb.SyncRequest, context: Any) -> Any:
        """One page of what changed since a token, serialised."""
        problems = begin(request)
        dataset_id = dataset_of(request.dataset, problems)
        check_revision(request.min_revision, problems)
        if request.page_size < 0:
            problems.add("page_size", "must not be negative")
        problems.raise_any()
        check_may_read(caller(), dataset_id)
        selection = parse_selection(request.filter, request.read_mask.paths)
        events, token = await self._catalog.use(
            dataset_id,
            lambda dataset: self._feed.sync(
                dataset,
                request.token,
                selection=selection,
                min_revision=request.min_revision,
                page_size=request.page_size,
                timeout_seconds=wait_seconds(context, longest_seconds=self._revision_wait_seconds),
            ),
            incarnation=self._feed.incarnation(request.token),
        )
        # Joined bytes are joined messages, and the field of the events is the feed's.
        return events + pb.SyncResponse(token=token).SerializeToString()

    async def Subscribe(self, request: pb.SubscribeRequest, context: Any) -> AsyncGenerator[Any, None]:
        """The same, followed live; serialised."""
        del context
        problems = begin(request)
        dataset_id = dataset_of(request.dataset, problems)
        check_revision(request.min_revision, problems)
        if request.HasField("from_now") and not request.from_now:
            problems.add("from_now", "cannot be false: leave it out to start from nothing")
        problems.raise_any()
        check_may_read(caller(), dataset_id)
        selection = parse_selection(request.filter, request.read_mask.paths)
        allow_while(lambda principal: principal.may_read(dataset_id))
        dataset = await self._catalog.use(
            dataset_id, self._feed.present, incarnation=self._feed.incarnation(request.token)
        )
        frames = self._feed.subscribe(
            dataset,
            selection=selection,
            token=request.token,
            from_now=request.from_now,
            min_revision=request.min_revision,
        )
        async with aclosing(frames):
            async for frame in frames:
                yield frame
                del frame  # not kept while it waits for the next one
        raise Unavailable(
            "SHUTTING_DOWN",
            "the server is shutting down; connect again with the last token",
            retry_after_seconds=random.uniform(0.1, RETURN_SECONDS),  # noqa: S311 - spreads load, hides nothing
        )

    def UpdateFeed(self, request: AsyncIterator[Any], context: Any) -> AsyncGenerator[Any, None]:
        """Many datasets on one stream; serialised."""
        del context
        return self._updates.update_feed(request)

    async def ListHeads(self, request: pb.ListHeadsRequest, context: Any) -> pb.ListHeadsResponse:
        """Where all datasets stand."""
        del context
        return await self._heads.list_heads(request)

    async def GetUptake(self, request: pb.GetUptakeRequest, context: Any) -> pb.GetUptakeResponse:
        """Who has a revision."""
        return await self._replicas.get_uptake(request, context)

    async def DeleteReplica(self, request: pb.DeleteReplicaRequest, context: Any) -> pb.DeleteReplicaResponse:
        """Forget a replica."""
        del context
        return await self._replicas.delete_replica(request)

    async def DigestRanges(self, request: pb.DigestRangesRequest, context: Any) -> pb.DigestRangesResponse:
        """Counts and digests of ranges of record ids."""
        return await self._replicas.digest_ranges(request, context)
