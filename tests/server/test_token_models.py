"""T48: the rules for tokens against randomised models of the store, each beside simpler rules that fail.

A client scans one row a page, may break off anywhere, and is compared with the store whenever a page says that
it has reached the head. The positions, their progress and the verdicts are those of the server's own code.
"""

import random
from dataclasses import replace

import pytest

from support.feed_store import Table
from syncline_server.feed import tokens
from syncline_server.feed.tokens import Origin
from syncline_server.model import Head

RUNS = 1_200
HISTORY = b"history1"
ORIGIN = Origin(store_id=b"store-id", history_id=HISTORY, incarnation=b"i" * 16)


def new_table():
    return Table(head=Head(commit_id=ORIGIN.incarnation[:8]), commit_ids={0: ORIGIN.incarnation[:8]})


def judged(position, page):
    return (
        tokens.judge(
            position, origin=ORIGIN, histories=[HISTORY], head=page.head, seen_commit_id=page.seen_commit_id
        )
        is None
    )


class Client:
    """A copy, and the rule that decides whether it may go on."""

    def __init__(self, table, valid, *, every_page=True, keep=lambda data: data, max_changes=1):
        self.table = table
        self.valid = valid
        self.every_page = every_page
        self.keep = keep
        self.max_changes = max_changes
        self.position = None
        self.state = {}
        self.connected = False
        self.resets = 0

    def page(self):
        """Read one page; False when the copy should be exact now and is not."""
        page = self._read()
        judged = self.position is not None and (self.every_page or not self.connected)
        if judged and not self.valid(self.position, page):
            self.resets += 1
            self.position, self.state = None, {}
            page = self._read()
        self.connected = True
        changes = page.changes
        for record_id, sent, revision, kind in zip(
            changes.record_ids, changes.data, changes.revisions, changes.kinds, strict=True
        ):
            data = self.keep(sent) if kind == 1 else None
            if data is None:
                self.state.pop(record_id, None)
            else:
                self.state[record_id] = (revision, data)
        self.position = tokens.advance(self.position, page, ORIGIN)
        return not page.complete or self.state == {
            record_id: (revision, data)
            for record_id, (revision, data) in self.table.live().items()
            if self.keep(data) is not None
        }

    def _read(self):
        after, seen = (
            (0, 0) if self.position is None else (self.position.position, self.position.seen_revision)
        )
        return self.table.page(after, self.max_changes, 1 << 20, seen)


def write(table, choose, serial, keys="abc", most=2):
    """A commit of one or two puts and deletes."""
    actions = []
    for record_id in choose.sample(keys, choose.randint(1, most)):
        actions.append((record_id, b"%d" % serial if choose.random() < 0.7 else None))
    table.commit(actions)


# -- purge --------------------------------------------------------------------------------------------------


def cursor_only(position, page):
    return position.revision >= page.head.purge_revision


def not_inside(position, page):
    return max(position.base_revision, position.revision) >= page.head.purge_revision


def without_base(position, page):
    covered = position.revision if position.complete else position.revision - 1
    return covered >= page.head.purge_revision


def run_purge(rule, seed, *, every_page=True):
    choose = random.Random(seed)
    table = new_table()
    client = Client(table, rule, every_page=every_page)
    for step in range(60):
        match choose.choice(["write", "write", "write", "page", "page", "page", "drop", "purge"]):
            case "write":
                write(table, choose, step)
            case "page":
                if not client.page():
                    return "diverged", client.resets
            case "drop":
                client.connected = False
            case "purge":
                table.purge(choose.randint(table.head.purge_revision, table.head.revision))
    return "ok", client.resets


def test_t48_purge_rule_holds_and_simpler_ones_do_not():
    """M12, F1, F2, F7: judged on every page, with the base, and not trusting a commit that may be going on."""
    good = [run_purge(judged, seed) for seed in range(RUNS)]
    assert not [seed for seed, (outcome, _) in enumerate(good) if outcome == "diverged"]
    assert any(run_purge(cursor_only, seed, every_page=False)[0] == "diverged" for seed in range(RUNS))
    assert any(run_purge(judged, seed, every_page=False)[0] == "diverged" for seed in range(RUNS))
    assert any(run_purge(not_inside, seed)[0] == "diverged" for seed in range(RUNS))
    # Without the base nothing diverges, but a slow client may never finish (F2).
    without = [run_purge(without_base, seed) for seed in range(RUNS)]
    assert sum(resets for _, resets in without) > 1.5 * sum(resets for _, resets in good)


# -- where a copy is exact ----------------------------------------------------------------------------------


def run_claim(seed, claim):
    """Whether the copy equals the dataset where the claim says so, while rows move forward during the scan."""
    choose = random.Random(seed)
    table = new_table()
    history = {0: {}}
    for step in range(choose.randint(2, 6)):
        write(table, choose, step, most=1)
        history[table.head.revision] = table.live()
    first_head = table.head.revision
    client = Client(table, judged)
    for step in range(40):
        if choose.random() < 0.4:
            write(table, choose, 100 + step, most=1)
            history[table.head.revision] = table.live()
        exact = client.page()
        if claim == "head of the page's own snapshot":
            if not exact:
                return False
        elif claim == "cursor":
            if client.state != history[client.position.revision]:
                return False
        elif client.position.revision >= first_head:
            return client.state == history[first_head]
    return True


def test_t48_checkpoint_only_at_the_head_of_the_pages_snapshot():
    """M13, F3."""
    assert all(run_claim(seed, "head of the page's own snapshot") for seed in range(RUNS))
    assert not all(run_claim(seed, "cursor") for seed in range(RUNS))
    assert not all(run_claim(seed, "head when the scan began") for seed in range(RUNS))


# -- restore ------------------------------------------------------------------------------------------------


def not_ahead(position, page):
    return position.revision <= page.head.revision


def run_restore(seed, rule=None):
    """``rule`` None: the server's. Revisions are used again after a restore, commit ids are not.

    Every history is known here: the history id makes most cases easy, this is about the rest.
    """
    choose = random.Random(seed)
    table = new_table()
    cursor_ids = {}

    def commit_id_at_cursor(position, page):
        return not_ahead(position, page) and table.commit_ids.get(position.revision) == cursor_ids["id"]

    client = Client(table, {"not_ahead": not_ahead, "cursor": commit_id_at_cursor, None: judged}[rule])
    backup = None
    for step in range(70):
        match choose.choice(["write", "write", "write", "page", "page", "page", "drop", "backup", "restore"]):
            case "write":
                write(table, choose, seed * 100 + step, most=1)
            case "backup":
                backup = (table.head, dict(table.rows), dict(table.commit_ids))
            case "restore" if backup and choose.random() < 0.5:
                table.head, table.rows, table.commit_ids = backup[0], dict(backup[1]), dict(backup[2])
            case "page":
                if not client.page():
                    return "diverged"
                cursor_ids["id"] = table.commit_ids.get(client.position.revision)
    return "ok"


def test_t48_t57_history_rule_holds_and_simpler_ones_do_not():
    """M15, F8, F9, G13: the commit id that counts is that of the newest head any page was read at."""
    assert not [seed for seed in range(RUNS) if run_restore(seed) == "diverged"]
    assert any(run_restore(seed, "not_ahead") == "diverged" for seed in range(RUNS))
    assert any(run_restore(seed, "cursor") == "diverged" for seed in range(RUNS))


# -- filters ------------------------------------------------------------------------------------------------


def matches(data):
    return data is not None and int(data) % 2 == 0


class FilteredTable(Table):
    """What a store would have to keep for each rule about rows that do not match."""

    created = None
    matched_before = None

    def put(self, record_id, data):
        old = self.rows.get(record_id)
        if old is None or old.data is None:
            self.created[record_id] = self.head.revision + 1
            self.inherited.setdefault(record_id, self.head.revision + 1)
        self.matched_before[record_id] = old is not None and matches(old.data)
        self.commit([(record_id, data)])


def run_filter(rule, seed):
    choose = random.Random(seed)
    table = FilteredTable(head=Head(commit_id=bytes(8)), commit_ids={0: bytes(8)})
    table.created, table.inherited, table.matched_before = {}, {}, {}
    origin = replace(ORIGIN, filter_fingerprint=b"is even!")
    position, state = None, {}
    for _ in range(60):
        match choose.choice(["put", "put", "delete", "page", "page"]):
            case "put":
                table.put(choose.choice("abcd"), b"%d" % choose.randint(0, 3))
            case "delete":
                table.put(choose.choice("abcd"), None)
            case "page":
                seen = 0 if position is None else position.seen_revision
                page = table.page(0 if position is None else position.position, 2, 1 << 20, seen)
                for record_id, data in zip(page.changes.record_ids, page.changes.data, strict=True):
                    if data and matches(data):
                        state[record_id] = data
                    elif {
                        "always": True,
                        "matched before": table.matched_before[record_id],
                        "created before": table.created.get(record_id, 0) <= seen,
                        "created before, inherited": table.inherited.get(record_id, 0) <= seen,
                    }[rule]:
                        state.pop(record_id, None)
                if not page.complete and not page.changes:
                    continue
                position = tokens.advance(position, page, origin)
                live = {k: data for k, (_, data) in table.live().items() if matches(data)}
                if page.complete and state != live:
                    return "diverged"
    return "ok"


@pytest.mark.parametrize(
    ("rule", "holds"),
    [
        ("always", True),
        ("created before, inherited", True),
        ("matched before", False),
        ("created before", False),
    ],
)
def test_t48_f5_rows_that_left_the_filter(rule, holds):
    """M14: what a filtered subscription will have to send as REMOVE; positions carry the filter already."""
    assert all(run_filter(rule, seed) == "ok" for seed in range(RUNS)) is holds
