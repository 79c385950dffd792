"""All promises, each with its validator."""

from collections.abc import Callable, Iterator

from robustness import promises_feed, promises_store
from robustness.evidence import Evidence
from robustness.history import History

Validator = Callable[[Evidence], Iterator[str]]

PROMISES: dict[str, Validator] = {
    "ordered": promises_feed.ordered,
    "unique": promises_feed.unique,
    "atomic": promises_store.atomic,
    "reliable": promises_store.reliable,
    "resumable": promises_feed.resumable,
    "bookmarked": promises_feed.bookmarked,
    "filtered": promises_feed.filtered,
    "exactly_once": promises_store.exactly_once,
    "real_time": promises_store.real_time,
    "fenced": promises_store.fenced,
    "sequenced": promises_store.sequenced,
    "no_gratuitous_reset": promises_feed.no_gratuitous_reset,
    "convergent": promises_feed.convergent,
    "revoked": promises_feed.revoked,
    "alone": promises_store.alone,
}
"""By name, the word of the promise."""


def judge(history: History) -> dict[str, list[str]]:
    """The violations of each promise that was broken."""
    evidence = Evidence(history)
    return {name: found for name, validate in PROMISES.items() if (found := list(validate(evidence)))}
