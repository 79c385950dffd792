"""Parts of an UpdateFeedResponse, framed by hand: what the feed serialised for all is not serialised again.

A part is one length-delimited field 1 of the message. Its own fields may come in any order, so the events come first,
as the bytes that they are (``FeedPart.events`` has the number of ``SubscribeResponse.events``), and what is of this
subscription alone is appended.
"""

from typing import Final

from syncline import names
from syncline.v1 import sync_service_pb2, update_feed_pb2
from syncline_server.feed.abc import PartEncoder
from syncline_server.rpc.convert import duration
from syncline_server.rpc.interceptors import tell

_PARTS_TAG: Final = b"\x0a"
"""Field 1, length-delimited."""
_ERROR_TAG: Final = b"\x2a"
"""Field 5 of a part, length-delimited: a serialised google.rpc.Status."""
METHOD: Final = "SyncService/UpdateFeed"


class ProtobufPartEncoder(PartEncoder):
    """See PartEncoder."""

    def __init__(self, *, retry_seconds: float) -> None:
        self._retry_seconds = retry_seconds

    def begin(self, size_bytes: int) -> bytes:
        """See PartEncoder."""
        return _PARTS_TAG + varint(size_bytes)

    def address(self, subscription_id: int, dataset_id: str) -> bytes:
        """See PartEncoder."""
        dataset = names.dataset_name(dataset_id) if dataset_id else ""
        return update_feed_pb2.FeedPart(subscription_id=subscription_id, dataset=dataset).SerializeToString()

    def accepted(self, head_revision: int, *, cost_class: int, unverified: bool) -> bytes:
        """See PartEncoder."""
        accepted = update_feed_pb2.Accepted(
            head_revision=head_revision,
            cost_class=update_feed_pb2.Accepted.CostClass.ValueType(cost_class),
            unverified=unverified,
        )
        return update_feed_pb2.FeedPart(accepted=accepted).SerializeToString()

    def error(self, error: Exception) -> bytes:
        """See PartEncoder."""
        status = tell(METHOD, error).details
        return _ERROR_TAG + varint(len(status)) + status

    def going_away(self) -> bytes:
        """See PartEncoder."""
        going = update_feed_pb2.GoingAway(retry_delay=duration(round(self._retry_seconds * 1e6)))
        return sync_service_pb2.UpdateFeedResponse(going_away=going).SerializeToString()


def varint(number: int) -> bytes:
    """A number as protobuf writes lengths: seven bits a byte, the lowest first, the highest bit for "goes on"."""
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)
