"""The guarantees and the tests that hold them up: a test says in its name (``test_g15_…``) or docstring which it is for."""

import re
from dataclasses import dataclass
from pathlib import Path

from blocks.markdown import table as markdown_table
from blocks.suite import Store, Test, find_tests

SHOWN_TESTS = 3
STORES: tuple[Store, ...] = ("sqlite", "postgres")
DISTANCES = ("acceptance", "robustness", "contract", "client", "server")
"""Where a test is looked for first: the further away from the code, the more it proves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarantee:
    number: int
    name: str
    statement: str
    later: str = ""
    """Part of the statement that is not there yet."""


GUARANTEES = (
    Guarantee(
        number=1,
        name="Atomic",
        statement="A commit is visible to reads, subscribers and other nodes entirely or not at all.",
    ),
    Guarantee(
        number=2,
        name="Durable",
        statement="After OK a commit survives `kill -9`, OS crash and power loss. Nothing is sent to any subscriber before it is durable.",
    ),
    Guarantee(
        number=3,
        name="Ordered",
        statement="Revisions of a dataset are 1, 2, 3, … and agree with real time. Nothing is promised across datasets.",
    ),
    Guarantee(
        number=4,
        name="Three outcomes",
        statement="A write ends *OK(revision)*, *rejected, no effect* (INVALID_ARGUMENT, NOT_FOUND, ALREADY_EXISTS, PERMISSION_DENIED, UNAUTHENTICATED, FAILED_PRECONDITION, ABORTED, OUT_OF_RANGE, RESOURCE_EXHAUSTED, UNIMPLEMENTED) or *unknown* (UNAVAILABLE, DEADLINE_EXCEEDED, CANCELLED, INTERNAL, UNKNOWN). A rejected write never appears later.",
    ),
    Guarantee(
        number=5,
        name="Retry-safe",
        statement="The same identity (producer + epoch + sequence, or `request_id`) has exactly one effect and gets the first answer back. Producers are remembered without limit, request ids ≥ 24 h; past that FAILED_PRECONDITION, never a silent second application. The identity row is written in the same transaction as the data.",
    ),
    Guarantee(
        number=6,
        name="Fenced",
        statement="Once a producer is opened with a newer epoch, the older one is refused.",
    ),
    Guarantee(
        number=7,
        name="Convergent",
        statement="At checkpoint(r) a copy equals S(r) under its filter: same ids, bytes, revisions; count and digest prove it.",
    ),
    Guarantee(
        number=8,
        name="Contiguous",
        statement="Batches say `from`/`to` revision and satisfy `from == previous to`; a loss is detectable by the client.",
    ),
    Guarantee(
        number=9,
        name="Conflated, not history",
        statement="Intermediate versions may be skipped; the last version before a checkpoint never is; nothing uncommitted is shown.",
    ),
    Guarantee(
        number=10,
        name="Bookmarked",
        statement="Checkpoints travel in order with the data; a caught-up subscriber gets one within 10 s (± jitter) even if nothing matches its filter, and one right before a clean shutdown.",
    ),
    Guarantee(
        number=11,
        name="Resumable",
        statement='A token works across restarts and nodes for at least the published retention; otherwise the stream begins with RESET(reason). Never a silent gap, never a restart at "now".',
    ),
    Guarantee(
        number=12,
        name="No time travel",
        statement="Within one history a client's checkpoints never decrease, whichever node answers.",
    ),
    Guarantee(
        number=13,
        name="History change is loud",
        statement="After restore, lossy fail-over or rollback a token of the lost history gives RESET(HISTORY_CHANGED).",
    ),
    Guarantee(number=14, name="Read your writes", statement="`min_revision` on reads and subscriptions."),
    Guarantee(
        number=15,
        name="Replace is exact",
        statement="After commit the session's source holds exactly the pushed set; unchanged records keep their revision and make no event; a replace (or pull) that would delete more than the guard allows is refused unless the caller says so.",
        later="pulls come later",
    ),
    Guarantee(
        number=16,
        name="Sessions are private",
        statement="Nothing of an accrue or replace session shows before commit; after rollback, crash or expiry nothing remains.",
    ),
    Guarantee(
        number=17,
        name="Slow readers are alone",
        statement="A stuck subscriber delays no commit and no other subscriber; the server holds at most 1 MiB for it, then conflates from the store.",
    ),
    Guarantee(
        number=18,
        name="Honest under stress",
        statement="Disk full, locked store, overload: writes are refused with a retriable code, reads and streams go on, health says so, nothing acknowledged is lost, no manual repair afterwards.",
    ),
    Guarantee(
        number=20,
        name="Clean stop",
        statement="SIGTERM keeps acknowledged work, gives subscribers a last token, ends within the grace.",
    ),
    Guarantee(
        number=21,
        name="Revocation",
        statement="A revoked key ends live streams within 30 s; tokens carry no right.",
    ),
)


def shown(root: Path) -> dict[tuple[int, Store], list[Test]]:
    """For each guarantee and store the tests that are linked."""
    found = list(find_tests(root))

    def order(test: Test, number: int, store: Store) -> tuple[bool, bool, bool, bool, bool, int, str, str]:
        first = bool(re.match(rf"test_g0?{number}_", test.name))
        in_name = bool(re.search(rf"_g0?{number}(?=_|$)", test.name))
        alone = test.stores == {"postgres"}  # about nodes, or about PostgreSQL itself
        room = test.file.split("/")[1]
        distance = DISTANCES.index(room) if room in DISTANCES else len(DISTANCES)
        return (
            not (first or alone),
            not in_name,
            "cli" in test.file,
            store not in test.commit,
            not alone,
            distance,
            test.file,
            test.name,
        )

    return {
        (guarantee.number, store): sorted(
            (test for test in found if guarantee.number in test.guarantees and store in test.stores),
            key=lambda test: order(test, guarantee.number, store),
        )[:SHOWN_TESTS]
        for guarantee in GUARANTEES
        for store in STORES
    }


def table(root: Path) -> str:
    tests = shown(root)
    rows = []
    for guarantee in GUARANTEES:
        statement = guarantee.statement + (f" *(Now: {guarantee.later}.)*" if guarantee.later else "")
        columns = (
            "<br>".join(_link(test, store) for test in tests[guarantee.number, store]) for store in STORES
        )
        rows.append((f"G{guarantee.number}", f"**{guarantee.name}**", statement, *columns))
    return markdown_table(
        ("", "guarantee", "exact statement", "tests on SQLite", "tests on PostgreSQL"), rows
    )


def _link(test: Test, store: Store) -> str:
    """In italics where `make test` leaves it out on this store."""
    link = f"[{test.name.removeprefix('test_')}]({test.file})"
    return link if store in test.commit else f"*{link}*"
