"""One module for each group of figures."""

from collections.abc import Mapping

from bench.figures import idle, live, push, replace, sync
from bench.measure import Measurement

ALL: Mapping[str, Measurement] = {
    "push_bulk": push.measure_bulk,
    "push_bulk_shuffled": push.measure_bulk_shuffled,
    "push_single": push.measure_single,
    "sync_cold": sync.measure_cold,
    "live": live.measure_latency,
    "fanout_bulk": live.measure_fanout,
    "rss_idle_stream": idle.measure,
    "replace": replace.measure,
}
"""By the name that ``--only`` takes. ``live`` makes live_p50 and live_p99; ``replace`` makes replace_diff and
sync_resume, which need the same million records."""
