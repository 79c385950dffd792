"""T118: what the checker is worth. Each planted fault is caught, and the same run without it passes."""

import asyncio
import signal
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace

import pytest

from robustness import planted
from robustness.planted import CLIENT, SERVER, command
from robustness.traffic import PLAIN, TINY, Traffic, told
from support.postgres_cluster import store_address
from support.server_process import server_process

SEED = 118
SECONDS = 1.2
ROUNDS = 8
"""How often a run is tried before a fault counts as not caught; nearly all are caught by the first."""


def patience(name, seconds):
    """How long all may take to come to their end: where there is no fault, as long as a busy machine may need."""
    return 20.0 if name in SOUND else seconds


def server_of(name):
    """The command of a server with this fault; one of the SDK needs none."""
    return command("sound" if name in CLIENT else name)


@asynccontextmanager
async def at_work(store, directory, name, *, settings=TINY, patience_seconds=3.0, **how):
    """A server with the fault, and its clients."""
    async with (
        server_process(directory, env=settings, prefix=server_of(name), store=store) as server,
        Traffic.on(server, seed=SEED, **how) as traffic,
    ):
        traffic.catch_up_seconds = patience(name, patience_seconds)
        yield server, traffic


async def busy(store, directory, name):
    """Everything at once on one server that keeps, sends and remembers little."""
    async with at_work(store, directory, name) as (_, traffic):
        await asyncio.sleep(SECONDS)
        await traffic.settle()
        return traffic.judge()


async def killed(store, directory, name):
    """The server dies where writes are durable and not answered, three times; then everybody tries again."""
    crowd = replace(PLAIN, writers=2, sessions=1, sensors=3, readers=1, subscribers=(), copies=())
    async with at_work(store, directory, name, patience_seconds=8.0, crowd=crowd) as (server, traffic):
        await server.stop()
        for visit in (30, 25, 35):
            await server.start(env={"SYNCLINE_FAILPOINTS": f"commit.after=kill@{visit}"})
            assert await server.wait() == -signal.SIGKILL
        await server.start()
        await traffic.settle()
        return traffic.judge()


async def copies(store, directory, name):
    """Copies that applications keep, leave in the middle of a batch, and take up again much later."""
    crowd = replace(PLAIN, subscribers=(), copies=(("things", "all"),) * 5)
    async with at_work(store, directory, name, crowd=crowd) as (_, traffic):
        await asyncio.sleep(2 * SECONDS)
        await traffic.settle()
        return traffic.judge()


async def purged(store, directory, name):
    """Pages read slowly, from old tokens and inside scans, where tombstones go at once."""
    crowd = replace(
        PLAIN,
        subscribers=(("things", "all"),),
        pagers=(("things", "all"), ("things", "red")) * 4,
        copies=(),
    )
    settings = TINY | {"SYNCLINE_RETENTION_REVISIONS": "4", "SYNCLINE_PURGE_SECONDS": "0.1"}
    async with at_work(store, directory, name, settings=settings, crowd=crowd) as (_, traffic):
        await asyncio.sleep(2 * SECONDS)
        await traffic.settle()
        return traffic.judge()


async def quiet(store, directory, name):
    """Bookmarks are rare, so that only wake-ups bring what was written."""
    settings = {key: value for key, value in TINY.items() if "CHECKPOINT" not in key}
    # Whole copies only: of a filtered one that nothing concerns, the checkpoint moves with the bookmarks.
    followed = (("things", "all"), ("items", "all"))
    crowd = replace(PLAIN, writers=2, readers=1, subscribers=followed, copies=followed)
    work = at_work(
        store,
        directory,
        name,
        settings=settings,
        patience_seconds=1.5,  # below the time after which a silent stream is begun anew
        crowd=crowd,
        checkpoint_seconds=10.0,
    )
    async with work as (_, traffic):
        traffic.run.is_calm = True
        await asyncio.sleep(SECONDS / 3)
        await traffic.settle()
        return traffic.judge()


async def guests(store, directory, name):
    """Readers whose keys are taken from them while they follow."""
    crowd = replace(PLAIN, writers=1, guests=2, subscribers=(), copies=())
    settings = TINY | {"SYNCLINE_KEY_CHECK_SECONDS": "0.2"}
    async with at_work(store, directory, name, settings=settings, crowd=crowd) as (_, traffic):
        await traffic.acknowledged(10)
        await traffic.revoke(within_seconds=SECONDS)
        await traffic.settle()
        return traffic.judge()


PLANTED = {
    "revoked_keys_live_on": (guests, {"revoked"}),
    "watermark_checked_only_at_connect": (purged, {"convergent", "filtered"}),
    "stale_token_goes_on": (purged, {"convergent", "filtered"}),
    "head_read_in_a_second_transaction": (busy, {"convergent", "ordered"}),
    "checkpoint_at_the_cursor": (busy, {"convergent", "bookmarked"}),
    "remove_only_what_matched": (busy, {"filtered"}),
    "ring_by_arrival": (busy, {"convergent"}),
    "bookmark_ahead_of_data": (busy, {"ordered", "convergent"}),
    "frame_sent_twice": (busy, {"unique", "ordered"}),
    "wake_up_lost": (quiet, {"convergent"}),
    "reset_without_need": (busy, {"no_gratuitous_reset"}),
    "purge_not_contiguous": (purged, {"convergent", "filtered"}),
    "acknowledged_before_commit": (busy, {"real_time", "reliable"}),
    "requests_remembered_in_another_transaction": (killed, {"exactly_once"}),
    "numbers_moved_in_another_transaction": (killed, {"exactly_once"}),
    "clones_not_fenced": (busy, {"fenced"}),
    "late_close_accepted": (busy, {"fenced", "reliable"}),
    "reads_from_a_cache": (busy, {"real_time"}),
    "token_before_data": (copies, {"convergent"}),
    "reset_ignored": (copies, {"convergent"}),
    "duplicate_applied_twice": (busy, {"convergent"}),
}
"""The run of each fault, and the promises that it breaks, one of which at least must tell."""

SOUND = {"sound": (busy, killed, quiet, copies, purged, guests), "announcements_are_lost": (busy,)}


AT_EVERY_COMMIT = {
    "revoked_keys_live_on",
    "head_read_in_a_second_transaction",
    "checkpoint_at_the_cursor",
    "remove_only_what_matched",
    "frame_sent_twice",
    "wake_up_lost",
    "reset_without_need",
    "acknowledged_before_commit",
    "clones_not_fenced",
    "duplicate_applied_twice",
}
"""Two at most for each promise; the others, and servers that die, in `make test-all`: each costs seconds."""
SOUND_AT_EVERY_COMMIT = {busy}
"""The randomised run is another one without a fault."""


IN_SQLITE = {
    "ring_by_arrival",
    "acknowledged_before_commit",
    "requests_remembered_in_another_transaction",
    "numbers_moved_in_another_transaction",
}
"""Planted into transactions as they are made there, or rings that hear of nothing but announcements. For those of
PostgreSQL see test_planted_nodes.py."""


def parameter(name, *run):
    """Slow, unless it is one of those."""
    is_quick = SOUND_AT_EVERY_COMMIT.issuperset(run) if run else name in AT_EVERY_COMMIT
    marks = [] if is_quick else [pytest.mark.slow]
    if name in IN_SQLITE:
        marks.append(pytest.mark.only_store("sqlite", reason="planted into what it alone has"))
    return pytest.param(name, *run, marks=marks)


@pytest.mark.parametrize("name", [parameter(name) for name in PLANTED])
async def test_t118_a_planted_fault_is_caught(store_name, tmp_path, name):
    run, promises = PLANTED[name]
    for attempt in range(ROUNDS):
        directory = tmp_path / f"{attempt}"
        with (
            store_address(store_name, is_sound=name in CLIENT) as store,
            CLIENT.get(name, nullcontext)(),
        ):
            judged = await run(store, directory, name)
        print(told(judged))
        if promises & judged.keys():
            return
    pytest.fail(f"not caught in {ROUNDS} runs")


@pytest.mark.parametrize(
    ("name", "run"),
    [parameter(name, run) for name, runs in SOUND.items() for run in runs],
    ids=lambda v: getattr(v, "__name__", v),
)
async def test_t118_the_same_run_without_a_fault_passes(store_name, tmp_path, name, run):
    with store_address(store_name) as store:
        judged = await run(store, tmp_path, name)
    assert not judged, told(judged)


def test_every_planted_fault_has_its_test():
    here = {name for name, patch in SERVER.items() if patch.__module__ == planted.__name__}
    assert PLANTED.keys() == (here | CLIENT.keys()) - SOUND.keys()
