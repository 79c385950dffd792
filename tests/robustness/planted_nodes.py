"""Faults planted into nodes that share a store, and disturbances that break no promise. See ``planted.py``."""

import asyncio
from dataclasses import replace
from typing import Any

from robustness.planted import server

DISTURBANCES = {"hints_are_lost", "lease_never_given_up", "short_leases"}

# -- disturbances: legal, and no fault ----------------------------------------------------------------------


@server
def hints_are_lost() -> None:
    """Nothing is heard of other nodes; what they do is found by looking, every half second."""
    from syncline_server.catalog import lookout
    from syncline_server.notify.postgres import PostgresNotifier

    PostgresNotifier._tell_hint = lambda self, hint: None
    lookout.LOOK_SECONDS = lookout.DEAF_LOOK_SECONDS = 0.6
    lookout.LEAST_SECONDS = 0.1


@server
def lease_never_given_up() -> None:
    """A node that was once given the lease goes on under it; the store refuses what it does then."""
    from syncline_server import upkeep

    short_leases()
    run = upkeep.Duty.run

    async def stubborn(self: Any) -> None:
        had = self._lease
        await run(self)
        if had is not None:
            self._lease = had

    upkeep.Duty.run = stubborn
    upkeep.Duty.lease = property(lambda self: self._lease)
    upkeep._lost = lambda lease: None


@server
def short_leases() -> None:
    """A lease lasts less than a node may be suspended in a test."""
    from syncline_server import upkeep

    upkeep.LEASE_SECONDS = 0.6
    upkeep.EXTEND_SECONDS = 0.2


# -- the feed -----------------------------------------------------------------------------------------------


@server
def ring_vouches_for_what_it_has_not_heard() -> None:
    """A token that is ahead of the ring is answered from the ring, which knows nothing of it (G12)."""
    hints_are_lost()
    from syncline_server.feed import feed

    try_ring = feed._try_ring

    def trusting(channel: Any, progress: Any, start: Any, **how: Any) -> None:
        tail, head = channel.ring.tail, channel.ring.head
        if start.complete and tail is not None and head is not None and tail.revision < start.revision:
            progress.position = tail
            progress.floor_revision = 0
            progress.confirm(head)
            return
        try_ring(channel, progress, start, **how)

    feed._try_ring = trusting


@server
def other_nodes_are_never_looked_at() -> None:
    """Neither hints nor looks: what another node commits is not noticed (F52)."""
    hints_are_lost()
    from syncline_server.catalog.lookout import Lookout

    async def look_away(self: Any) -> None:
        del self
        await asyncio.Event().wait()

    Lookout._keep_looking = look_away


# -- the store ----------------------------------------------------------------------------------------------


@server
def fence_not_checked() -> None:
    """Whoever was once given the lease works on under it, and the store does not ask (F53)."""
    lease_never_given_up()
    from syncline_server.store.postgres import nodes

    async def believe(connection: Any, lease: Any) -> None:
        del connection, lease

    nodes.check_lease = believe


@server
def retried_without_looking() -> None:
    """A commit whose answer was lost is done again by the node, which does not look for the request (F50)."""
    from syncline_server.errors import Unavailable
    from syncline_server.store.postgres.commits import Commits

    commit = Commits._commit_group

    async def again(self: Any, commits: Any, *args: Any, **how: Any) -> Any:
        for _ in range(20):
            try:
                return await commit(self, commits, *args, **how)
            except Unavailable:
                commits = [replace(one, identity=None) for one in commits]
                await asyncio.sleep(0.05)
        return await commit(self, commits, *args, **how)

    Commits._commit_group = again


@server
def answers_remembered_by_the_node() -> None:
    """Answers to request ids are kept in the node's memory, so another node does not know them (F25)."""
    from syncline_server.store.postgres import group

    known_of, arguments_of, kept = group._known, group._arguments, {}

    def remember(plan: Any, *args: Any) -> Any:
        for identity, answer in plan.requests:
            kept[identity.request_id] = (identity.fingerprint, replace(answer, replayed=True))
        plan.requests.clear()
        return arguments_of(plan, *args)

    def recall(*columns: Any) -> Any:
        known = known_of(*columns)
        known.answers.update(kept)
        return known

    group._arguments = remember
    group._known = recall
