"""Two PostgreSQL servers with streaming replication: the primary is lost, and its standby takes over under load.

The nodes know both by one address and write to whichever is the primary. They end when the database is another one
than it was, and whatever supervises them starts them again.
"""

import asyncio
import time
from dataclasses import replace

import pytest

from robustness.eras import judge_fail_over
from robustness.history import DatasetLog, History
from robustness.recorder import PostgresRecorder
from robustness.traffic import PLAIN, Traffic, told
from support.postgres_replication import DATABASE, replicated
from support.server_process import server_process
from syncline_server.app import EXIT_FAILED
from syncline_server.store.postgres.fsck import fsck

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.only_store("postgres", reason="a standby takes over"),
]

WRITES = 60
SUBSCRIBERS = (("things", "all"), ("things", "red"), ("items", "all"), ("items", "large"))
CROWD = replace(
    PLAIN,
    sessions=1,
    subscribers=SUBSCRIBERS,
    pagers=(("things", "all"), ("things", "two")),
    streams=(tuple((*place, "latest") for place in SUBSCRIBERS),),
    copies=(("things", "all"), ("items", "red")),
    readers=1,
)


async def fail_over(pair, directory, seed, *, while_cut_off=None):
    """Traffic on two nodes over a pair whose primary is lost; its history, not judged, and the moment."""
    directory.mkdir(exist_ok=True)
    for number in (0, 1):
        (directory / f"{number}").mkdir()
    one = server_process(directory / "0", store=pair.dsn, data=directory / "data")
    other = server_process(directory / "1", store=pair.dsn, data=directory / "data")
    async with one as first, other as second:
        nodes = (first, second)
        traffic = Traffic.on(
            first,
            seed=seed,
            crowd=CROWD,
            addresses=[node.address for node in nodes],
            recorder=PostgresRecorder(pair.primary.dsn(DATABASE)),
            checkpoint_seconds=10.0,
        )
        async with traffic as traffic:
            traffic.run.is_calm = True  # everybody goes on from where it stands
            traffic.catch_up_seconds = 30.0
            await traffic.acknowledged(WRITES)
            if while_cut_off is not None:
                await while_cut_off(traffic)
            await pair.lose_primary()
            moment = time.monotonic()
            if while_cut_off is not None:
                await asyncio.to_thread(pair.standby.start_on_tcp)
            await pair.promote()
            for node in nodes:
                assert await node.wait() == EXIT_FAILED
                await node.start()
            await traffic.acknowledged(WRITES)
            await traffic.settle()
            traffic.recorder = PostgresRecorder(pair.standby.dsn(DATABASE))
            traffic.judge()
            for node in nodes:
                assert await node.stop() == 0
            report = await fsck(pair.standby.dsn(DATABASE))
            assert report.ok, report.problems
            return traffic, moment


async def test_t77_g02_the_synchronous_standby_has_everything_that_was_acknowledged(tmp_path, seed):
    """T77: no acknowledged loss, nobody begins anew, and nobody learns of it but by a pause."""
    async with replicated(synchronous=True) as pair:
        traffic, _ = await fail_over(pair, tmp_path, seed)
    assert not traffic.judged, told(traffic.judged)
    assert traffic.resets == []


async def test_t76_g13_an_asynchronous_standby_without_the_last_commits(tmp_path, seed):
    """T76: what it lacks is lost, whoever had seen any of it is told, and nobody has anything else than the dataset."""
    async with replicated(synchronous=False) as pair:

        async def lag(traffic):
            """Commits that the standby does not have, seen by everybody."""
            await asyncio.to_thread(pair.standby.stop)
            await traffic.acknowledged(WRITES)

        traffic, moment = await fail_over(pair, tmp_path, seed, while_cut_off=lag)
        await asyncio.to_thread(pair.standby.stop)
        await asyncio.to_thread(pair.primary.start_on_tcp)
        old = await asyncio.to_thread(log_of, pair.primary.dsn(DATABASE), traffic.history)

    outcome = judge_fail_over(traffic.history, old, moment)
    assert not outcome.violations, told(outcome.violations)
    assert len(outcome.lost) >= WRITES / 2
    assert {"subscriber 0 (things, all, latest)", "subscriber 2 (items, all, latest)"} <= {*outcome.told}
    # A checker that does not know of the fail-over reports just that loss, and those resets.
    naive = traffic.judged
    reported = {text.split()[1] for text in naive["reliable"] if "does not hold it" in text}
    again = {operation.number for operation in outcome.lost if len({*operation.answers}) > 1}
    assert reported >= {f"{operation.number}" for operation in outcome.lost if operation.number not in again}
    assert any("HISTORY_CHANGED" in text for text in naive["no_gratuitous_reset"])


def log_of(dsn: str, history: History) -> dict[str, DatasetLog]:
    """What a database has recorded of the datasets of a history."""
    other = History(datasets={name: DatasetLog() for name in history.datasets})
    PostgresRecorder(dsn).collect(other)
    return other.datasets
