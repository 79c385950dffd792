"""What a session's commit does to records that were changed since it was opened (T36)."""

import pytest

from support.store_values import Backend, Bench, body, deletes, request, upserts
from syncline_server.errors import Aborted, FailedPrecondition
from syncline_server.model import ConflictPolicy, MassDeleteGuard, Reason, RecordScope, SessionMode
from syncline_server.store.abc import Store

OVERWRITE, KEEP_NEWER, ABORT = ConflictPolicy


async def begun(bench: Bench, policy: ConflictPolicy, mode: SessionMode) -> tuple:
    """A session that holds an upsert of everything named u…, a delete of d…; then all are changed meanwhile."""
    await bench.put({"u": 1, "u-gone": 1, "u-same": 1, "u-still": 1, "d": 1, "d-still": 1, "d-gone": 1})
    session = await bench.open(mode, conflict_policy=policy)
    assert (session.conflict_policy, session.base_revision) == (policy, 1)
    await bench.stage(
        session, upserts({"u": 2, "u-gone": 2, "u-same": 2, "u-still": 2, "u-new": 2, "u-made": 2})
    )
    await bench.stage(session, deletes("d", "d-still", "d-gone", "d-never"))
    await bench.put({"u": 3, "u-same": 2, "d": 3, "u-made": 3, "mine": 3})
    await bench.remove("u-gone", "d-gone")
    return session, 2


async def test_t36_overwrite_is_the_default_and_the_last_commit_wins(bench: Bench) -> None:
    """T36, G15."""
    assert (await bench.open()).conflict_policy is OVERWRITE
    session, calls = await begun(bench, OVERWRITE, SessionMode.REPLACE)
    result = await bench.close(session, calls)
    assert (result.created, result.updated, result.unchanged, result.deleted, result.kept) == (2, 3, 1, 3, 0)
    assert {r: data for r, (_, data) in (await bench.copy()).items()} == {
        r: body(r, 2) for r in ("u", "u-gone", "u-same", "u-still", "u-new", "u-made")
    }


@pytest.mark.parametrize("mode", [SessionMode.ACCRUE, SessionMode.REPLACE])
async def test_t36_keep_newer_leaves_what_was_changed_meanwhile(bench: Bench, mode: SessionMode) -> None:
    """T36: neither overwritten nor deleted; what was deleted stays deleted; what is equal is no conflict."""
    session, calls = await begun(bench, KEEP_NEWER, mode)
    preview = await bench.close(session, calls, dry_run=True)
    identity = request("close")
    group = await bench.group(
        bench.commit(_closing(session, calls), reason=Reason.SESSION, identity=identity)
    )
    result = group.results[0]
    replaced = mode is SessionMode.REPLACE
    assert (result.created, result.updated, result.unchanged, result.deleted) == (1, 1, 1, 1)
    assert result.kept == (5 if replaced else 4), "u, u-gone, u-made, d; mine is named by a replace alone"
    assert (preview.created, preview.updated, preview.unchanged, preview.deleted, preview.kept) == (
        result.created,
        result.updated,
        result.unchanged,
        result.deleted,
        result.kept,
    )
    assert await bench.copy() == {
        "u": (2, body("u", 3)),
        "u-same": (2, body("u-same", 2)),
        "u-made": (2, body("u-made", 3)),
        "d": (2, body("d", 3)),
        "mine": (2, body("mine", 3)),
        "u-still": (4, body("u-still", 2)),
        "u-new": (4, body("u-new", 2)),
    }
    changes = group.appended[0].changes
    assert changes is not None
    assert list(changes.record_ids) == ["u-still", "u-new", "d-still"]
    assert group.appended[0].head == await bench.head()
    again = await bench.store.find_answer(identity)
    assert again is not None
    assert again.kept == result.kept


def _closing(session, calls, guard=None):
    from syncline_server.model import SessionCommit

    return SessionCommit(session_id=session.session_id, calls=calls, guard=guard)


@pytest.mark.parametrize("mode", [SessionMode.ACCRUE, SessionMode.REPLACE])
async def test_t36_abort_refuses_and_the_session_stays_open(bench: Bench, mode: SessionMode) -> None:
    """T36."""
    session, calls = await begun(bench, ABORT, mode)
    before = await bench.copy()
    for dry_run in (True, False, False):
        with pytest.raises(Aborted) as raised:
            await bench.close(session, calls, dry_run=dry_run)
        assert raised.value.reason == "SESSION_CONFLICT"
        assert raised.value.metadata["conflicts"] == str(5 if mode is SessionMode.REPLACE else 4)
    assert await bench.copy() == before
    await bench.stage(session, upserts({"one": "more"}))
    assert await bench.store.discard_session(session.session_id, source_number=bench.source.number) == 3


@pytest.mark.parametrize("policy", list(ConflictPolicy))
@pytest.mark.parametrize("mode", [SessionMode.ACCRUE, SessionMode.REPLACE])
async def test_t36_without_conflicts_all_policies_do_the_same(
    bench: Bench, policy: ConflictPolicy, mode: SessionMode
) -> None:
    """T36: equal records, deletes of what is gone, and other sources' records are no conflicts."""
    other = await bench.second_source()
    await bench.put({"same": 1, "changes": 1, "gone": 1, "goes": 1})
    session = await bench.open(mode, conflict_policy=policy)
    await bench.stage(session, upserts({"same": 2, "changes": 2, "new": 2}))
    await bench.stage(session, deletes("gone", "goes"))
    await other.put({"same": 2, "theirs": 1})
    await bench.remove("gone")
    result = await bench.close(session, 2)
    assert (result.created, result.updated, result.unchanged, result.deleted, result.kept) == (1, 1, 1, 1, 0)
    assert await bench.copy() == {
        "same": (2, body("same", 2)),
        "theirs": (2, body("theirs")),
        "changes": (4, body("changes", 2)),
        "new": (4, body("new", 2)),
    }


@pytest.mark.parametrize(("policy", "refused"), [(KEEP_NEWER, False), (ABORT, True)])
async def test_t36_one_tombstone_is_a_conflict(bench: Bench, policy: ConflictPolicy, refused: bool) -> None:
    """T36: a deletion meanwhile wins over the upsert, or aborts it."""
    await bench.put(["a"])
    session = await bench.open(SessionMode.ACCRUE, conflict_policy=policy)
    await bench.stage(session, upserts({"a": 2}))
    await bench.remove("a")
    if refused:
        with pytest.raises(Aborted):
            await bench.close(session, 1)
    else:
        result = await bench.close(session, 1)
        assert (result.revision, result.changed, result.kept) == (2, False, 1)
    assert await bench.copy() == {}


async def test_t36_an_earlier_tombstone_is_no_conflict(bench: Bench) -> None:
    """T36."""
    await bench.put(["a"])
    await bench.remove("a")
    session = await bench.open(SessionMode.ACCRUE, conflict_policy=ABORT)
    await bench.stage(session, upserts({"a": 2}))
    assert (await bench.close(session, 1)).created == 1


async def test_t36_a_commit_ahead_in_the_same_group_counts(bench: Bench) -> None:
    """T36: decided inside the transaction, not while the records were staged."""
    await bench.put(["a"])
    session = await bench.open(SessionMode.ACCRUE, conflict_policy=ABORT)
    await bench.stage(session, upserts({"a": 2}))
    await bench.store.prepare_session(session.session_id)
    group = await bench.group(bench.commit(upserts({"a": 3})), bench.commit(_closing(session, 1)))
    assert isinstance(group.results[1], Aborted)
    assert await bench.copy() == {"a": (2, body("a", 3))}


async def test_t36_t42_the_guard_counts_what_would_really_go(bench: Bench) -> None:
    """T36, T42: records that are kept are not deleted, so 120 of 200 become 90."""
    names = [f"k{i:03d}" for i in range(200)]
    await bench.put(names)
    keeping = await bench.open(conflict_policy=KEEP_NEWER)
    await bench.stage(keeping, upserts(names[:80]))
    with pytest.raises(FailedPrecondition) as raised:
        await bench.close(keeping, 1, MassDeleteGuard())
    assert raised.value.metadata["deleted"] == "120"
    await bench.put(dict.fromkeys(names[-30:], 2))
    result = await bench.close(keeping, 1, MassDeleteGuard())
    assert (result.deleted, result.kept, result.unchanged) == (90, 30, 80)


async def test_t36_the_session_remembers_policy_and_base(store: Store, backend: Backend) -> None:
    """T36: read back, and replayed by its identity after other commits."""
    bench = await Bench.make(store, backend.clock, record_scope=RecordScope.PER_SOURCE)
    await bench.put(["default/a"])
    identity = request("open")
    session = await bench.open(conflict_policy=KEEP_NEWER, identity=identity)
    await bench.put(["default/b"])
    assert await bench.open(conflict_policy=KEEP_NEWER, identity=identity) == session
    found = await bench.store.get_session(session.session_id, source_number=bench.source.number)
    assert (found.conflict_policy, found.base_revision) == (KEEP_NEWER, 1)
