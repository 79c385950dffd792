"""The checker is itself checked: a sound history passes, and each validator catches what breaks its promise."""

from dataclasses import replace

import pytest

from robustness.history import (
    Batch,
    Checkpoint,
    DatasetLog,
    Ended,
    History,
    Logged,
    Opened,
    Opening,
    Operation,
    Purged,
    Read,
    Reset,
    View,
    canonical,
)
from robustness.model import Model, digest_of
from robustness.promises import PROMISES, judge
from robustness.promises_feed import GRANT_SECONDS, STOP
from robustness.subscribers import CREDIT_BYTES, Credit

pytestmark = pytest.mark.only_store("sqlite", reason="no store is involved")


def record(key, number, color="red"):
    return canonical({"id": key, "op": number, "color": color})


A1, B1 = record("a", 1), record("b", 1, "blue")
A2 = record("a", 2, "green")
C3 = record("c", 3)
P5 = record("p-1", 5)


def write(number, revision, puts=(), **how):
    values = {
        "kind": "push",
        "dataset": "things",
        "puts": dict(puts),
        "request_id": f"request-{number}",
        "invoked": number,
        "returned": number + 0.5,
        "outcome": "ok",
        "changed": True,
    }
    return Operation(number=number, revision=revision, **(values | {"answers": [revision]} | how))


def sound():
    """Two pushes, one of unknown outcome that was done, a delete, a reading; a whole view and a filtered one."""
    history = History(checkpoint_seconds=1.0)
    history.operations = [
        write(1, 1, {"a": A1, "b": B1}),
        write(2, 2, {"a": A2}),
        write(3, None, {"c": C3}, outcome="unknown", returned=None, changed=None, answers=[]),
        write(4, 4, kind="delete", deletes=("b",)),
        write(5, 5, {"p-1": P5}, kind="reading", owner="sensor", epoch=1, request_id=""),
        write(6, None, {"d": record("d", 6)}, outcome="rejected", changed=None, answers=[], code="ABORTED"),
    ]
    history.openings = [Opening(owner="sensor", epoch=1, invoked=0.1, returned=0.2)]
    history.requests = {"request-1": 1, "request-2": 2, "request-3": 3, "request-4": 4}
    changes = [{"a": A1, "b": B1}, {"a": A2}, {"c": C3}, {"b": None}, {"p-1": P5}]
    log = DatasetLog(
        commits=[
            Logged(revision=n, commit_id=bytes([n]), changes=change) for n, change in enumerate(changes, 1)
        ],
        purges=[Purged(at=0.0, revision=0)],
        head=5,
    )
    history.datasets["things"] = log
    model = Model(log)
    log.final = model.states[-1]
    log.count, log.digest = len(log.final), digest_of(log.final)

    def checkpoint(at, revision, selection="all", **how):
        state = model.selected(revision, selection)
        token = f"{selection}-{revision}".encode()
        return Checkpoint(
            at=at, revision=revision, count=len(state), digest=digest_of(state), token=token, **how
        )

    history.view("whole", "things").note(
        Opened(at=2.6),
        Batch(
            at=2.7, from_revision=0, to_revision=2, partial=True, changes=(("put", "b", 1, B1),), token=b"row"
        ),
        Batch(at=2.8, from_revision=2, to_revision=2, changes=(("put", "a", 2, A2),)),
        checkpoint(2.9, 2),
        Ended(at=3.0, code="UNAVAILABLE"),
        Opened(at=3.1, token=b"row"),
        Batch(
            at=4.6,
            from_revision=2,
            to_revision=4,
            changes=(("put", "a", 2, A2), ("put", "c", 3, C3), ("delete", "b", 4, b"")),
        ),
        checkpoint(4.7, 4),
        Batch(at=5.6, from_revision=4, to_revision=5, changes=(("put", "p-1", 5, P5),)),
        checkpoint(5.7, 5, going_away=True),
        Ended(at=6.0, code="UNAVAILABLE", reason="SHUTTING_DOWN"),
    )
    history.revocation_seconds = 2.0
    history.guests.append(View(name="guest", dataset="things", revoked=3.0))
    history.guests[0].note(
        Opened(at=2.0),
        Checkpoint(at=4.9, revision=4, count=0, digest=b"", token=b""),
        Ended(at=5.0, code="UNAUTHENTICATED"),
    )
    history.view("red", "things", selection="red").note(
        Opened(at=1.6),
        Batch(at=1.7, from_revision=0, to_revision=1, changes=(("put", "a", 1, A1),)),
        checkpoint(1.8, 1, "red"),
        Batch(
            at=5.1,
            from_revision=1,
            to_revision=5,
            changes=(("remove", "a", 2, b""), ("put", "c", 3, C3), ("put", "p-1", 5, P5)),
        ),
        checkpoint(5.2, 5, "red"),
    )
    history.covered = {token: 0 for view in history.views for token in view.tokens}
    history.covered |= {b"row": 2, b"all-2": 2, b"all-4": 4, b"red-1": 1}
    history.reads = [
        Read(
            name="reader",
            dataset="things",
            invoked=2.6,
            returned=2.7,
            min_revision=2,
            revision=2,
            records={"a": (2, A2), "b": (1, B1)},
        )
    ]
    history.calm_since, history.ended = 5.0, 6.1
    return history


def whole(history):
    return history.views[0].frames


def red(history):
    return history.views[1].frames


def op(history, number):
    return history.operations[number - 1]


def alter(frames, index, **fields):
    frames[index] = replace(frames[index], **fields)


def alter_commit(history, revision, changes):
    log = history.datasets["things"]
    log.commits[revision - 1] = replace(log.commits[revision - 1], changes=changes)


def lose(history, revision):
    """A revision that was acknowledged is not in the log, the later ones take its place."""
    log = history.datasets["things"]
    del log.commits[revision - 1]
    log.commits = [replace(logged, revision=n) for n, logged in enumerate(log.commits, 1)]


def reread(history, **fields):
    history.reads[0] = replace(history.reads[0], **fields)


def session_after_the_next(history):
    history.operations.append(
        write(7, 2, kind="session", owner="things/feed", epoch=1, invoked=1.9, request_id="request-2")
    )
    history.openings.append(Opening(owner="things/feed", epoch=2, invoked=1.0, returned=1.1))


def epoch_behind(history):
    history.operations.append(
        write(7, 4, {"p-0": b""}, kind="reading", owner="sensor", epoch=2, request_id="")
    )
    alter_commit(history, 4, {"p-0": record("p-0", 7)})


def overtaken(history):
    """A later reading of a producer stands before an earlier one."""
    readings = {4: record("p-7", 7), 5: record("p-6", 6)}
    for revision, data in readings.items():
        alter_commit(history, revision, {f"p-{revision}": data})
    for number in (6, 7):
        reading = {"kind": "reading", "owner": "gauge", "request_id": ""}
        history.operations.append(write(number, 5, {"p": record(f"p-{number}", number)}, **reading))


def leased(history, *leases):
    """Node b purges as the fourth of what happened."""
    history.leases = list(leases)
    history.datasets["things"].purges.append(Purged(at=1.0, revision=3, order=4, node="b"))


def look(history, revision):
    """An application looks at its copy for the last time."""
    history.reads.append(replace(history.reads[0], name="copy", revision=revision, is_live=False))


def reset(history, reason="COMPACTED", purged=()):
    whole(history)[6:6] = [Reset(at=4.5, reason=reason)]
    history.datasets["things"].purges += [Purged(at=4.0, revision=revision) for revision in purged]


def guest(history, *frames):
    """A guest that heard these, instead of what it should."""
    history.guests[0].frames[1:] = frames


BROKEN = {
    "ordered": [
        ("goes on from 3", lambda h: alter(red(h), 3, from_revision=3)),
        (
            "out of order",
            lambda h: alter(
                whole(h), 6, changes=(("put", "c", 3, C3), ("put", "a", 2, A2), ("delete", "b", 4, b""))
            ),
        ),
        (
            "after checkpoint 4",
            lambda h: alter(whole(h), 8, changes=(("put", "c", 4, C3), ("put", "p-1", 5, P5))),
        ),
        ("checkpoint 1 after 4", lambda h: alter(whole(h), 9, revision=1)),
        ("the copy is at 5", lambda h: alter(whole(h), 9, revision=6)),
    ],
    "unique": [
        (
            "came twice",
            lambda h: alter(whole(h), 8, changes=(("put", "p-1", 5, P5), ("put", "p-1", 5, P5))),
        ),
    ],
    "atomic": [
        ("not the whole effect of operation 1", lambda h: alter_commit(h, 1, {"a": A1})),
        ("written by nobody", lambda h: (h.requests.pop("request-4"), setattr(op(h, 4), "changed", False))),
        ("did not see it as it was", lambda h: reread(h, records={"a": (2, A2)})),
        ("there never was", lambda h: reread(h, revision=9)),
    ],
    "reliable": [
        ("does not hold it", lambda h: lose(h, 2)),
        ("acknowledged and is lost", lambda h: alter_commit(h, 5, {"p-1": record("p-1", 99)})),
        ("was rejected", lambda h: h.requests.update({"request-6": 3})),
        ("not contiguous", lambda h: h.datasets["things"].commits.pop(2)),
        ("the head is 6", lambda h: setattr(h.datasets["things"], "head", 6)),
        ("what the server holds", lambda h: h.datasets["things"].final.pop("a")),
        ("count or digest of the head", lambda h: setattr(h.datasets["things"], "count", 9)),
    ],
    "resumable": [
        ("the stream began at 4", lambda h: alter(whole(h), 6, from_revision=4)),
        ("never given", lambda h: alter(whole(h), 5, token=b"other")),
        ("ended with INTERNAL", lambda h: alter(whole(h), 4, code="INTERNAL")),
    ],
    "revoked": [
        (
            "heard 1 messages more",
            lambda h: guest(h, Checkpoint(at=9.0, revision=5, count=0, digest=b"", token=b"")),
        ),
        ("was never told", lambda h: guest(h, Ended(at=4.0, code="UNAVAILABLE"))),
    ],
    "bookmarked": [
        ("inside a commit", lambda h: alter(whole(h), 6, partial=True)),
        ("no checkpoint for", lambda h: setattr(h, "ended", 60.0)),
        ("without a last checkpoint", lambda h: alter(whole(h), 9, going_away=False)),
        ("beyond the end", lambda h: alter(whole(h), 6, to_revision=3)),
    ],
    "filtered": [
        (
            "holds what does not match",
            lambda h: alter(red(h), 3, changes=(("put", "c", 3, C3), ("put", "p-1", 5, P5))),
        ),
        (
            "lacks what matches",
            lambda h: alter(red(h), 3, changes=(("remove", "a", 2, b""), ("put", "p-1", 5, P5))),
        ),
        (
            "not what the filter selects",
            lambda h: alter(red(h), 1, changes=(("put", "a", 1, A1), ("put", "b", 1, B1))),
        ),
        (
            "where there is no filter",
            lambda h: alter(
                whole(h), 6, changes=(("put", "a", 2, A2), ("put", "c", 3, C3), ("remove", "b", 4, b""))
            ),
        ),
    ],
    "exactly_once": [
        (
            "took effect at revisions [2, 5]",
            lambda h: alter_commit(h, 5, {"p-1": P5, "x": record("x", 2)}),
        ),
        ("made 2 records", lambda h: alter_commit(h, 5, {"p-1": P5, "p-2": P5})),
        ("was answered with", lambda h: op(h, 1).answers.append(4)),
        ("was given to operations", lambda h: setattr(op(h, 4), "revision", 2)),
        ("took effect at revisions [4, 5]", lambda h: alter_commit(h, 4, {"b": None, "p-1": P5})),
    ],
    "real_time": [
        ("began after a later revision", lambda h: setattr(op(h, 1), "invoked", 3.0)),
        ("asked for revision 4", lambda h: reread(h, min_revision=4)),
        ("after 4 had been", lambda h: reread(h, invoked=4.9)),
        ("first checkpoint at 2", lambda h: alter(whole(h), 0, at=4.9)),
    ],
    "fenced": [
        ("after epoch 2 was open", session_after_the_next),
        ("after one of epoch 2", epoch_behind),
    ],
    "sequenced": [("at revision 4, and operation 6", overtaken)],
    "alone": [
        ("b purged up to 3, while a had", lambda h: leased(h, (2, "a"))),
        ("b purged up to 3, while c had", lambda h: leased(h, (1, "a"), (2, "b"), (3, "c"), (5, "b"))),
    ],
    "no_gratuitous_reset": [
        ("nothing above was purged", reset),
        ("nothing of the kind", lambda h: reset(h, "HISTORY_CHANGED", [9])),
    ],
    "convergent": [
        (
            "1 records differ",
            lambda h: alter(whole(h), 6, changes=(("put", "c", 3, C3), ("delete", "b", 4, b""))),
        ),
        ("count or digest", lambda h: alter(whole(h), 7, count=7)),
        ("the head is 5", lambda h: whole(h).__delitem__(slice(8, 11))),
        ("had to be mended", lambda h: h.complaints.append("replica had to be mended")),
        ("there never was", lambda h: alter(whole(h), 9, revision=8)),
        ("its copy of things ended at revision 3", lambda h: look(h, 3)),
    ],
}


def test_a_sound_history_passes():
    assert judge(sound()) == {}


def test_a_node_with_the_lease_may_purge():
    history = sound()
    leased(history, (1, "a"), (2, "b"), (6, "a"))
    assert judge(history) == {}


def test_an_unknown_write_may_be_absent():
    history = sound()
    history.operations.append(
        write(8, None, {"z": record("z", 8)}, outcome="unknown", changed=None, answers=[])
    )
    assert judge(history) == {}


def test_a_reset_is_in_order_where_the_tombstones_are_gone():
    history = sound()
    reset(history, purged=[3])
    assert "no_gratuitous_reset" not in judge(history)


@pytest.mark.parametrize(
    ("credit_since", "told_to_stop", "is_owed"),
    [
        (None, None, True),
        (6.0 - GRANT_SECONDS - 0.1, None, True),
        (6.0 - GRANT_SECONDS + 0.1, None, False),
        (5.0 - GRANT_SECONDS - 0.1, 5.0, True),
        (5.0 - GRANT_SECONDS + 0.1, 5.0, False),
        (5.0 - GRANT_SECONDS + 0.1, 6.5, True),
    ],
)
def test_a_last_checkpoint_is_owed_unless_there_may_be_no_credit(credit_since, told_to_stop, is_owed):
    history = sound()
    alter(whole(history), 9, going_away=False)
    alter(whole(history), 10, credit_since=credit_since)
    history.faults = [] if told_to_stop is None else [(told_to_stop, STOP)]
    assert ("bookmarked" in judge(history)) is is_owed


@pytest.mark.parametrize(
    ("parts", "since"),
    [
        ([], None),
        ([(9.0, CREDIT_BYTES - 1)], None),
        ([(8.0, 1), (9.0, CREDIT_BYTES)], 9.0),
        ([(7.0, 5), (8.5, CREDIT_BYTES // 2), (9.0, CREDIT_BYTES // 2)], 8.5),
        ([(8.0, CREDIT_BYTES), (9.0, 1)], 8.0),
    ],
)
def test_since_when_all_credit_was_granted_anew(parts, since):
    credit = Credit()
    for at, size in parts:
        credit.grant(at, size)
    assert credit.since == since


@pytest.mark.parametrize(
    ("promise", "words", "breaks"),
    [(promise, *case) for promise, cases in BROKEN.items() for case in cases],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_t118_each_validator_catches_what_breaks_its_promise(promise, words, breaks):
    history = sound()
    breaks(history)
    found = judge(history).get(promise, [])
    assert any(words in violation for violation in found), found


def test_every_promise_has_such_a_test():
    assert BROKEN.keys() == PROMISES.keys()


def test_a_history_can_be_kept(tmp_path):
    history = sound()
    history.fault("cut")
    history.save(tmp_path / "history.jsonl")
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 1 + 6 + 1 + 1 + 16 + 5 + 1
