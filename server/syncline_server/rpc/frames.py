"""Feed events as bytes. Columns are filled in place: no message object per change, and no copy of a batch."""

from typing import Any

from syncline.v1 import feed_pb2
from syncline.v1.sync_service_pb2 import SubscribeResponse
from syncline_server.feed.abc import EventEncoder
from syncline_server.model import Changes, Head, ResetReason
from syncline_server.rpc.convert import timestamp


class ProtobufEncoder(EventEncoder):
    """Serialises events as ``SubscribeResponse`` with one event each; SyncResponse has the same field."""

    def changes(
        self,
        changes: Changes,
        *,
        from_revision: int,
        to_revision: int,
        partial: bool,
        token: bytes,
        folded: int = 0,
    ) -> bytes:
        """See EventEncoder."""
        frame = SubscribeResponse()
        batch: Any = frame.events.add().changes  # Any: the enums' numbers are ours
        batch.from_revision = from_revision
        batch.to_revision = to_revision
        batch.partial = partial
        batch.record_ids.extend(changes.record_ids)
        batch.data.extend(changes.data)
        batch.revisions.extend(changes.revisions)
        batch.commit_times_us.extend(changes.commit_times_us)
        batch.kinds.extend(changes.kinds)
        batch.reasons.extend(changes.reasons)
        batch.token = token
        batch.folded = folded
        return frame.SerializeToString()

    def checkpoint(self, head: Head, *, token: bytes, going_away: bool = False) -> bytes:
        """See EventEncoder."""
        checkpoint = feed_pb2.Checkpoint(
            revision=head.revision,
            record_count=head.record_count,
            digest=digest_bytes(head) if head.record_count >= 0 else b"",
            commit_time=timestamp(head.commit_time_us) if head.revision else None,
            token=token,
            going_away=going_away,
        )
        return SubscribeResponse(events=[feed_pb2.FeedEvent(checkpoint=checkpoint)]).SerializeToString()

    def reset(self, reason: ResetReason, message: str) -> bytes:
        """See EventEncoder."""
        reset = feed_pb2.Reset(reason=feed_pb2.Reset.Reason.ValueType(reason), message=message)
        return SubscribeResponse(events=[feed_pb2.FeedEvent(reset=reset)]).SerializeToString()


def digest_bytes(head: Head) -> bytes:
    """The digest as it travels: 16 bytes, big-endian."""
    return head.digest.to_bytes(16, "big")
