"""Where datasets and their replicas stand: ``Client.heads`` and ``Dataset.uptake``."""

import asyncio
from typing import Any, Final

from syncline._call import Caller
from syncline._wire import to_head, to_uptake
from syncline.errors import OutcomeUnknown
from syncline.models import DatasetHead, Uptake
from syncline.names import dataset_name
from syncline.v1.sync_service_pb2 import GetUptakeRequest, ListHeadsRequest
from syncline.v1.sync_service_pb2_grpc import SyncServiceStub

HEADS_PER_PAGE: Final = 10_000
WAIT_SECONDS: Final = 20.0
"""Longest wait of one call; longer ones are several calls."""
PAUSE_SECONDS: Final = 0.2


async def list_heads(stub: SyncServiceStub, caller: Caller, prefix: str) -> list[DatasetHead]:
    """All heads, ordered by dataset. Raises SynclineError."""
    request = ListHeadsRequest(prefix=prefix, page_size=HEADS_PER_PAGE)
    heads: list[DatasetHead] = []
    while True:
        page: Any = await caller.read(stub.ListHeads, request)
        heads += map(to_head, page.heads)
        if not page.next_page_token:
            return heads
        request.page_token = page.next_page_token


async def get_uptake(
    stub: SyncServiceStub,
    caller: Caller,
    dataset: str,
    *,
    revision: int,
    wait_ratio: float,
    timeout_seconds: float,
    replicas: int,
) -> Uptake:
    """Who has a revision, when enough have it or the time is over. Raises SynclineError."""
    if not 0.0 <= wait_ratio <= 1.0:
        raise ValueError(f"a part of the replicas is a number from 0 to 1, not {wait_ratio}")
    request = GetUptakeRequest(dataset=dataset_name(dataset), revision=revision, page_size=replicas)
    if not wait_ratio:
        return to_uptake(await caller.read(stub.GetUptake, request))
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_seconds
    request.wait_ratio = wait_ratio
    while True:
        remaining = max(deadline - loop.time(), 0.0)
        if remaining <= PAUSE_SECONDS:
            request.wait_ratio = 0.0
        timeout = min(remaining, WAIT_SECONDS) if request.wait_ratio else None
        try:
            report = to_uptake(await caller.read(stub.GetUptake, request, timeout_seconds=timeout))
        except OutcomeUnknown:
            if not request.wait_ratio:
                raise
            await asyncio.sleep(min(PAUSE_SECONDS, remaining))
            continue
        if report.ratio >= wait_ratio or not request.wait_ratio:
            return report
        request.revision = report.revision  # the newest one, when it was not said which
