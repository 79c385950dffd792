"""ListHeads: where all datasets stand, without a stream."""

import uuid
from collections.abc import Sequence
from typing import Final

from syncline import names
from syncline.v1 import sync_service_pb2 as pb
from syncline_server.feed.streams import before_prefix
from syncline_server.model import Head
from syncline_server.query import page_tokens
from syncline_server.rpc.calls import caller
from syncline_server.rpc.convert import begin, timestamp
from syncline_server.rpc.frames import digest_bytes
from syncline_server.rpc.update_feed import check_prefix, check_reads
from syncline_server.store.abc import Store

DEFAULT_PAGE: Final = 1_000
MAX_PAGE: Final = 10_000

_Row = tuple[str, bytes, int, Head]


class ListHeadsMethod:
    """The method, as SyncService delegates it."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def list_heads(self, request: pb.ListHeadsRequest) -> pb.ListHeadsResponse:
        """One page. Datasets that the key may not read are passed over, so that a page may be short."""
        problems = begin(request)
        check_prefix(request.prefix, problems, "prefix")
        if request.page_size < 0:
            problems.add("page_size", "must not be negative")
        problems.raise_any()
        principal = caller()
        check_reads(principal)
        size = min(request.page_size or DEFAULT_PAGE, MAX_PAGE)
        scope = b"heads/" + request.prefix.encode()
        secret = self._store.info.token_secret
        after = before_prefix(request.prefix)
        if request.page_token:
            after = page_tokens.decode(request.page_token, incarnation=scope, secret=secret)
        found = await self._store.list_heads(after=after, limit=size + 1)
        found = [row for row in found if row[0].startswith(request.prefix)]
        page: Sequence[_Row] = found[:size]
        token = ""
        if len(found) > size:
            token = page_tokens.encode(page[-1][0], incarnation=scope, secret=secret)
        return pb.ListHeadsResponse(
            heads=[_head_out(*row) for row in page if principal.may_read(row[0])], next_page_token=token
        )


def _head_out(dataset_id: str, incarnation: bytes, number: int, head: Head) -> pb.DatasetHead:
    del number
    return pb.DatasetHead(
        dataset=names.dataset_name(dataset_id),
        uid=str(uuid.UUID(bytes=incarnation)),
        revision=head.revision,
        record_count=head.record_count,
        digest=digest_bytes(head),
        commit_time=timestamp(head.commit_time_us) if head.revision else None,
    )
