"""What the server counts, in Prometheus' form, in one object that is handed around.

Labels have few, fixed values: a dataset's or a caller's name never becomes a label, because names are chosen
by callers and every new one would cost memory here and in whatever reads this.
"""

from collections.abc import Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from syncline_server.model import ResetReason, Status

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

_SECONDS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Half a millisecond is a quick fsync, ten seconds an unbearable one."""

_GROUP: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """All figures of one server, in a registry of their own; times are in seconds, sizes in bytes."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        # -- commits
        self.commits = self._counter("syncline_commits", "Writes by outcome", ("outcome",))
        self.commits_changed = self.commits.labels("changed")
        self.commits_unchanged = self.commits.labels("unchanged")
        self.commits_replayed = self.commits.labels("replayed")
        self.commits_refused = self.commits.labels("refused")
        records = self._counter("syncline_records", "Posted records, keys and ids by verdict", ("status",))
        self.records = {status: records.labels(status.name.lower()) for status in Status}
        self.transaction_seconds = self._histogram(
            "syncline_transaction_seconds",
            "One transaction of a group of writes, the commit included",
            _SECONDS,
        )
        self.fsync_seconds = self._histogram(
            "syncline_fsync_seconds", "The commit statement, which waits for the disk", _SECONDS
        )
        self.group_commits = self._histogram("syncline_group_commits", "Writes in one transaction", _GROUP)
        self.queue_commits = self._gauge("syncline_queue_commits", "Writes waiting for the store")
        self.queue_bytes = self._gauge("syncline_queue_bytes", "Bytes of the writes waiting for the store")
        self.sessions = self._gauge("syncline_sessions", "Open sessions")
        self.producer_streams = self._gauge("syncline_producer_streams", "Open streams of producers")
        self.producer_backlog_bytes = self._gauge(
            "syncline_producer_backlog_bytes", "Bytes of readings that are not durable yet"
        )
        # -- feed
        self.subscribers = self._gauge("syncline_subscribers", "Open subscriptions")
        self.lag_revisions = self._gauge(
            "syncline_subscriber_lag_revisions", "How far the slowest subscription is behind its dataset"
        )
        self.ring_hits = self._counter("syncline_ring_hits", "Frames sent from memory")
        self.ring_misses = self._counter("syncline_ring_misses", "Frames that needed the store")
        self.page_cache_bytes = self._gauge(
            "syncline_page_cache_bytes", "Pages of scans that are kept for others who begin soon after"
        )
        self.scan_laps = self._counter(
            "syncline_scan_laps", "Scans that came to the head they had begun at and found more written since"
        )
        resets = self._counter("syncline_resets", "Copies that had to start anew", ("reason",))
        self.resets = {reason: resets.labels(reason.name.lower()) for reason in ResetReason}
        self.filter_changes = self._counter(
            "syncline_filter_changes", "Changes looked at for all filtered copies of a dataset together"
        )
        self.filter_members = self._gauge(
            "syncline_filter_members", "Records that filtered copies are accounted for"
        )
        self.filtered_channels = self._gauge(
            "syncline_filtered_channels", "Different selections of datasets that are followed"
        )
        # -- other nodes
        self.listening = self._gauge(
            "syncline_listening", "1 while wake-ups of other nodes are heard, else 0: they are late then"
        )
        self.tail_reads = self._counter(
            "syncline_tail_reads", "Pages read because another node had committed, once for all subscribers"
        )
        self.wakeups = self._counter("syncline_wakeups", "Wake-ups heard of other nodes")
        # -- calls
        self.calls = self._counter(
            "syncline_calls", "Finished calls by method and status code", ("method", "code")
        )
        self.calls_in_flight = self._gauge("syncline_calls_in_flight", "Calls going on, streams not counted")
        self.bytes_in_flight = self._gauge("syncline_bytes_in_flight", "Bytes of the requests of these calls")
        # -- the process
        self.loop_lag_seconds = self._histogram(
            "syncline_loop_lag_seconds", "How late the event loop comes to a timer", _SECONDS
        )
        self.writable = self._gauge("syncline_writable", "1 while writes are accepted, else 0")
        self.upkeep_lease = self._gauge(
            "syncline_upkeep_lease", "1 on the node that does what is done once for all nodes, else 0"
        )
        self.node_lag_seconds = self._gauge(
            "syncline_node_lag_seconds",
            "Age of the oldest commit that this node had not heard of when it last looked at the store",
        )
        self.purged_tombstones = self._counter("syncline_purged_tombstones", "Tombstones dropped")
        self.expired_sessions = self._counter("syncline_expired_sessions", "Sessions rolled back by time")
        self.forgotten_requests = self._counter("syncline_forgotten_requests", "Request ids forgotten")
        self.background_failures = self._counter(
            "syncline_background_failures", "Failed runs of a background task", ("task",)
        )

    def exposition(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(name, text, buckets=buckets, registry=self.registry)
