"""Calls of a session that arrive at the same time are handed to the store in the order of their numbers."""

import asyncio

import pytest

from support.store_values import opened
from syncline_server.catalog.catalog import Catalog
from syncline_server.clock import SystemClock
from syncline_server.errors import OutOfRange, PermissionDenied
from syncline_server.ingest import sessions as sessions_module
from syncline_server.ingest.committer import Committer
from syncline_server.ingest.records import Limits, record_id_rule
from syncline_server.ingest.sessions import Sessions, SessionSettings
from syncline_server.ingest.write_path import Upsert, WritePath
from syncline_server.model import Identity, IdentityKind, Principal, Role, SessionMode
from syncline_server.notify.local import LocalNotifier

ADMIN = Principal(key_id="admin", role=Role.ADMIN)
WHERE = (ADMIN, "things", "default")


def call(n):
    return Upsert(records=[b'{"id":"%d"}' % n, b'{"id":"last","n":%d}' % n], conditions={})


@pytest.fixture
async def house(store_name, tmp_path):
    """Sessions over a store, the store, and its catalog."""
    clock, notifier = SystemClock(), LocalNotifier()
    async with opened(store_name, tmp_path, clock=clock) as store:
        catalog = Catalog(store, notifier, clock, record_id_rule=record_id_rule(Limits()))
        await catalog.create_dataset(
            "things", {"identity": Identity(kind=IdentityKind.KEY, key_fields=("id",))}
        )
        committer = Committer(store, notifier)
        async with committer.running():
            write_path = WritePath(catalog, store, committer, limits=Limits())
            yield Sessions(write_path, store, committer, clock, SessionSettings()), store, catalog


@pytest.mark.parametrize("mode", [SessionMode.STREAM, SessionMode.ACCRUE])
async def test_t41_calls_sent_out_of_order_are_applied_in_order(house, mode):
    """T41: twenty calls, the last one first; the last number has the last word."""
    sessions, store, catalog = house
    session = await sessions.open(*WHERE, mode=mode)
    reports = await asyncio.gather(
        *(sessions.write(*WHERE, session.session_id, call(n), sequence=n) for n in range(20, 0, -1))
    )
    result = await sessions.close(*WHERE, session.session_id, commit=True, calls=20)
    dataset = (await catalog.dataset("things")).dataset
    records, _, _ = await store.get_records(dataset.number, ["last"], max_bytes=1_000)

    assert sorted(report.calls for report in reports) == list(range(1, 21))
    assert records[0].data == b'{"id":"last","n":20}'
    assert (mode is SessionMode.STREAM) or result.created == 21


@pytest.mark.parametrize("mode", [SessionMode.STREAM, SessionMode.ACCRUE])
async def test_a_call_whose_predecessor_never_comes_is_told_which_is_expected(house, mode, monkeypatch):
    monkeypatch.setattr(sessions_module, "PREDECESSOR_WAIT_SECONDS", 0.05)
    sessions, _, _ = house
    session = await sessions.open(*WHERE, mode=mode)
    await sessions.write(*WHERE, session.session_id, call(1), sequence=1)
    with pytest.raises(OutOfRange) as refused:
        await sessions.write(*WHERE, session.session_id, call(3), sequence=3)
    await sessions.write(*WHERE, session.session_id, call(2), sequence=2)
    last = await sessions.write(*WHERE, session.session_id, call(3), sequence=3)

    assert refused.value.metadata["expected"] == "2"
    assert last.calls == 3


@pytest.mark.parametrize("mode", [SessionMode.STREAM, SessionMode.ACCRUE])
async def test_g05_a_repeated_call_has_one_effect(house, mode):
    """G5: sent again under its number it is answered; with other content under that number it is refused."""
    sessions, _, _ = house
    session = await sessions.open(*WHERE, mode=mode)
    first = await sessions.write(*WHERE, session.session_id, call(1), sequence=1)
    again = await sessions.write(*WHERE, session.session_id, call(1), sequence=1)
    with pytest.raises(Exception, match="accepted before, with other content"):
        await sessions.write(*WHERE, session.session_id, call(9), sequence=1)
    seen = await sessions.get(*WHERE, session.session_id)

    assert list(again.statuses) == list(first.statuses)
    assert seen.calls == 1


async def test_a_superseded_session_is_forgotten(house):
    sessions, _, _ = house
    first = await sessions.open(*WHERE, mode=SessionMode.ACCRUE)
    await sessions.write(*WHERE, first.session_id, call(1))
    second = await sessions.open(*WHERE, mode=SessionMode.ACCRUE)
    with pytest.raises(PermissionDenied):
        await sessions.write(*WHERE, first.session_id, call(2))
    report = await sessions.write(*WHERE, second.session_id, call(1))

    assert report.calls == 1
