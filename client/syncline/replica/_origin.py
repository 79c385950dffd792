"""What a replica is a copy of, and how it reaches it."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from syncline._selection import Selection
from syncline._subscription import Terms
from syncline.names import dataset_name
from syncline.replica._follow import Feed
from syncline.replica._repair import Mender
from syncline.v1.catalog_service_pb2 import GetDatasetRequest

if TYPE_CHECKING:
    from syncline.client import Connection

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin(Generic[T]):
    """A dataset, or what a selection leaves of it, on the server of an open client."""

    dataset: str
    selection: Selection
    decode: Callable[[bytes], T]
    connection: Callable[[], "Connection"]
    """Raises RuntimeError when the client is not open."""
    replica_id: str
    """Under which the server knows how far the replica is; empty: it does not."""

    def open_feed(self, token: bytes) -> AbstractAsyncContextManager[Feed]:
        """Follow it after a token; an empty one: from nothing."""
        terms = Terms(filter=self.selection.filter, fields=self.selection.fields, replica_id=self.replica_id)
        return self.connection().updates.subscribe(self.dataset, decode=self.decode, token=token, terms=terms)

    async def head(self) -> int:
        """Its newest revision. Raises SynclineError."""
        connection = self.connection()
        request = GetDatasetRequest(name=dataset_name(self.dataset))
        answer: Any = await connection.caller.read(connection.catalog.GetDataset, request)
        return int(answer.dataset.revision)

    def mender(self) -> Mender:
        """Finds what differs."""
        connection = self.connection()
        return Mender(
            connection.sync,
            connection.records,
            connection.caller,
            self.dataset,
            self.selection,
            self.decode,
        )
