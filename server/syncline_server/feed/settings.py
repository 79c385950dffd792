"""What the feed may be told."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedSettings:
    """Sizes and times of the feed; the defaults are those of the server's settings."""

    page_changes: int = 1_000
    """Most changes in a page."""
    page_bytes: int = 256 << 10
    """Bytes that a page stays near; one change alone may be larger."""
    scan_page_bytes: int = 512 << 10
    """The same for the pages of a scan that does not catch up. One is sent while the next one is read, so
    that a subscriber costs at most 1 MiB."""
    message_bytes: int = 256 << 10
    """Bytes up to which frames that are ready are joined."""
    frame_bytes: int = 1 << 20
    """Largest group of commits that the ring carries; the message must fit a client's default limit (4 MiB)."""
    ring_bytes: int = 8 << 20
    """Frames kept per dataset that is followed."""
    ring_frames: int = 10_000
    """The same in number, because a frame costs about 1 KiB beside its bytes."""
    shared_bytes: int = 4 << 20
    """Pages kept per dataset that is followed, for others who need the same."""
    page_cache_bytes: int = 64 << 20
    """Pages of scans kept for a few seconds, all datasets together; 0: none."""
    filter_members: int = 1_000_000
    """Records that all filtered copies together are accounted for; about 250 bytes each."""
    checkpoint_seconds: float = 10.0
    """A subscriber that is up to date gets a checkpoint this often, ± 10 %."""
    poll_seconds: float = 5.0
    """How often heads are looked at in case a wake-up was lost."""
    linger_seconds: float = 30.0
    """How long the frames of a dataset are kept after its last subscriber left."""
    revision_wait_seconds: float = 30.0
    """Longest wait for a revision when the caller names none."""
    subscriptions_per_stream: int = 10_000
    """Most subscriptions of one stream, each dataset of a prefix counted."""
    credit_bytes: int = 1 << 20
    """Bytes that may be under way to a subscription that names no credit."""
