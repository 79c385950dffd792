"""The first part of a copy by its members, so that a narrow filter does not cost a scan for each subscriber.

A copy that was begun from nothing at ``base_revision`` is sent, of what was there then, what has not changed since;
what has changed comes after it, as with a scan. The account knows these records: they are members, and their
revisions are not above the base. So they are read by their ids, in the order of positions, up to the base; behind it
the copy goes on like any other. Tokens are those of a scan, at the last record sent, and either way can go on from
the other's.
"""

from dataclasses import dataclass
from typing import Final

from syncline_server.feed.filtered_hub import Hub
from syncline_server.feed.filtered_members import Members, State
from syncline_server.feed.tokens import Origin, Position
from syncline_server.model import Page
from syncline_server.store.abc import Store

_NARROW: Final = 4
"""A copy is read by its members when it holds at most one in so many records; above it a scan costs less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A page, and where it leads."""

    page: Page
    end: Position


def in_first_part(position: Position | None) -> bool:
    """Whether a copy at this position is still inside what was there when it was begun."""
    return position is None or (not position.complete and position.revision <= position.base_revision)


async def read_members(
    store: Store,
    dataset_number: int,
    hub: Hub,
    members: Members,
    origin: Origin,
    position: Position | None,
    *,
    max_changes: int,
    max_bytes: int,
) -> Step | None:
    """Read the members that follow a position in the first part; None: not possible or not worth it, scan."""
    ledger = hub.ledger
    if ledger.head is None or members.state is not State.JOINED:
        return None
    if len(members.entries) * _NARROW > ledger.head.record_count:
        return None
    base_revision = ledger.head.revision if position is None else position.base_revision
    base = ledger.head_at(base_revision)
    if base is None or (position is not None and position.position >= base.last_position):
        return None  # it is not known any more where the first part ends, or this is there
    revision, after = (0, 0) if position is None else (position.revision, position.position)
    order = members.in_order(base_revision, ledger.head.revision)
    begin, end = order.first(revision, after), order.end(base_revision)
    while True:
        chunk = order.record_ids[begin : min(begin + max_changes, end)]
        begin += len(chunk)
        page = await store.read_named_changes(
            dataset_number,
            chunk,
            after=after,
            through_revision=base_revision,
            max_bytes=max_bytes,
            seen_revision=0 if position is None else position.seen_revision,
        )
        if page.changes or not page.complete or begin >= end:
            break
    over = page.complete and begin >= end
    if page.complete and not over:
        order.note(page.last_position, begin)
    return Step(
        page=page,
        end=Position(
            origin=origin,
            revision=base.revision if over else page.last_revision,
            position=base.last_position if over else page.last_position,
            complete=False,
            base_revision=base_revision,
            seen_revision=page.head.revision,
            seen_commit_id=page.head.commit_id,
        ),
    )
