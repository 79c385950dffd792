"""What an operator meets: metrics, log events, failpoints."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from blocks.markdown import table
from syncline_server.metrics import Metrics

LEVELS = ("debug", "info", "warning", "error", "exception", "critical")

EVENTS: dict[str, str] = {
    "catalog.changed": "A dataset, source or key was made, changed or deleted, by this key.",
    "lease.lost": "This node does no longer what one does for all nodes: it was silent for too long, and another took over.",
    "lease.taken": "This node does from now on what one does for all nodes. The fence counts how often that changed.",
    "loop.lag": "The event loop came late to a timer: something kept the process busy for so long.",
    "node.forgotten": "A node was taken off the list: it has been silent for so long.",
    "rpc.failed": "A call met something that nobody foresaw. The caller got INTERNAL with this incident id.",
    "server.failed": "The server ends because of a fault that nobody foresaw; the traceback is with it.",
    "server.grace_over": "The time for calls in progress is over while the server stops; so many are cut off.",
    "server.started": "The server listens on these addresses.",
    "server.stopped": "Everything is written and closed.",
    "server.stopping": "A signal asked the server to stop; it drains.",
    "store.failed": "The disk failed inside a commit, so what is on it is unknown, or the database is another one than it was (a fail-over); the process ends and is to be started again.",
    "store.not_writable": "Writes are refused from now on, for this reason; reads and streams go on.",
    "store.old_snapshot": "A transaction in the PostgreSQL database, of this program or of another, has been open for so long. Until it ends, vacuum removes nothing that was overwritten since, and tables grow: see `pg_stat_activity`.",
    "store.writable": "Writes are accepted again.",
    "notify.broken": "The connection by which nodes wake each other broke, or nothing came through it any more. It is tried again and again; until it is back, this node looks for what others did every second.",
    "purge.held_back": "Tombstones are old enough to go, but this replica has not come so far yet.",
    "upkeep.failed": "A run of a background task failed; the next one comes at its time. The same reason is told once.",
    "upkeep.recovered": "A background task that had failed has succeeded.",
}

FAILPOINTS: dict[str, str] = {
    "copy.batch": "`syncline-server copy` has added some thousand records to the new store",
    "copy.compared": "the last step of a copy: the old store is locked, the new one found equal to it",
    "copy.equal": "the new store is noted to be complete, the old one is not set aside yet",
    "copy.set_aside": "the old store is set aside, the new one not yet opened",
    "commit.before": "before the transaction of a group of writes begins",
    "commit.rows": "the rows of a group are written and not committed",
    "commit.after": "a group is durable and nobody has been answered",
    "purge": "a purge has dropped tombstones and is not committed",
    "reclaim": "rows of a deleted dataset are about to be removed",
    "migration.N": "step N of a migration is written and not committed",
    "checkpoint.before": "before a checkpoint of the WAL",
    "checkpoint.after": "after a checkpoint of the WAL",
    "stage.rows": "rows of a session's call are staged and not committed",
    "stage.after": "a session's call is durable and not answered",
    "prepare": "a session's file is being sorted for its commit",
    "session.applied": "a session's difference is applied and not committed",
}
"""Texts for every place there is; the table has those that the code reaches."""


def metrics(_root: Path) -> str:
    registry = Metrics().registry
    rows = []
    for collector in registry._collector_to_names:
        family = next(iter(collector.describe()))
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = ", ".join(f"`{label}`" for label in collector._labelnames)
        rows.append((f"`{name}`", family.type, labels, family.documentation))
    return table(("metric", "type", "labels", "meaning"), rows)


def log_events(root: Path) -> str:
    found: dict[str, tuple[set[str], set[str]]] = {}
    for name, level, fields in _logged(root / "server"):
        levels, names = found.setdefault(name, (set(), set()))
        levels.add("error" if level == "exception" else level)
        names |= fields
    return table(
        ("event", "level", "fields", "meaning"),
        (
            (
                f"`{name}`",
                ", ".join(sorted(levels)),
                ", ".join(f"`{field}`" for field in sorted(names)),
                _described(EVENTS, name),
            )
            for name, (levels, names) in sorted(found.items())
        ),
    )


def _described(texts: dict[str, str], name: str) -> str:
    if name not in texts:
        sys.exit(f"{name!r} has no description yet: give it one in docs/blocks/operation.py")
    return texts[name]


def _logged(directory: Path) -> Iterator[tuple[str, str, set[str]]]:
    for call in _calls(directory):
        match call.func:
            case ast.Attribute(attr=level, value=ast.Name(id=logger)) if (
                level in LEVELS and "log" in logger.lower()
            ):
                pass
            case _:
                continue
        if call.args and isinstance(call.args[0], ast.Constant) and isinstance(call.args[0].value, str):
            fields = {keyword.arg for keyword in call.keywords if keyword.arg and keyword.arg != "exc_info"}
            yield call.args[0].value, level, fields


def _calls(directory: Path) -> Iterator[ast.Call]:
    for file in sorted(directory.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                yield node


def reached_failpoints(root: Path) -> set[str]:
    """Names given to ``failpoints.hit``; a part that is computed is ``N``."""
    names = set()
    for call in _calls(root / "server"):
        if ast.unparse(call.func).rpartition(".")[2] == "hit" and call.args:
            match call.args[0]:
                case ast.Constant(value=str(name)):
                    names.add(name)
                case ast.JoinedStr(values=parts):
                    names.add(
                        "".join(part.value if isinstance(part, ast.Constant) else "N" for part in parts)
                    )
    return names


def failpoints(root: Path) -> str:
    return table(
        ("place", "reached"),
        ((f"`{name}`", _described(FAILPOINTS, name)) for name in sorted(reached_failpoints(root))),
    )
