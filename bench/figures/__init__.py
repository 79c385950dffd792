"""One module for each group of figures."""

from collections.abc import Mapping

from bench.figures import filtered, idle, live, push, replace, replica, sensor, sync
from bench.measure import Measurement, Outcome, Room
from bench.systems.base import Unavailable


def _postgres(name: str) -> Measurement:
    """One of those that need asyncpg, which is imported when it is measured: it may not be there."""

    async def measure(room: Room) -> Outcome:
        try:
            from bench.figures import postgres
        except ModuleNotFoundError as missing:
            raise Unavailable(f"no module {missing.name}: make setup") from missing
        measured: Measurement = getattr(postgres, name)
        return await measured(room)

    return measure


ALL: Mapping[str, Measurement] = {
    "push_bulk": push.measure_bulk,
    "push_bulk_shuffled": push.measure_bulk_shuffled,
    "push_single": push.measure_single,
    "sync_cold": sync.measure_cold,
    "live": live.measure_latency,
    "live_1000": live.measure_many,
    "fanout_bulk": live.measure_fanout,
    "fanout_filtered": filtered.measure,
    "sensor_stream": sensor.measure,
    "rss_idle_stream": idle.measure,
    "rss_subscription": idle.measure_subscriptions,
    "replica_file_cold": replica.measure_cold,
    "replace": replace.measure,
    "pg_push": _postgres("measure_push"),
    "pg_sync": _postgres("measure_sync"),
    "pg_live": _postgres("measure_live"),
}
"""By the name that ``--only`` takes. Some make several figures; ``replace`` makes those that need a million records,
sync_resume and digest_repair among them."""
