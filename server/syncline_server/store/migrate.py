"""Numbered migrations: which there are, and which a store still needs. Backends run them.

A migration is a file ``NNNN_name.sql`` in the backend's ``migrations`` package. Once released it never changes:
its checksum is kept in the store, and another one is refused. There is no way back down; a store with a newer
schema than this program knows is refused.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

from syncline_server.store.abc import StoreRefused

_FILE_NAME: Final = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One step of the schema."""

    version: int
    name: str
    script: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the script."""
        return hashlib.sha256(self.script.encode()).hexdigest()


def load_migrations(package: str) -> Sequence[Migration]:
    """Read the migrations in a package, in order. Raises ValueError when the numbers have a gap."""
    found = []
    for file in files(package).iterdir():
        if match := _FILE_NAME.fullmatch(file.name):
            script = file.read_text(encoding="utf-8")
            found.append(Migration(version=int(match[1]), name=match[2], script=script))
    found.sort(key=lambda migration: migration.version)
    if [migration.version for migration in found] != list(range(1, len(found) + 1)):
        raise ValueError(f"migrations of {package} are not numbered 1, 2, 3, …")
    return found


def pending(migrations: Sequence[Migration], applied: Mapping[int, str]) -> Sequence[Migration]:
    """Migrations that are not in ``applied`` (version to checksum) yet.

    Raises StoreRefused when the store has a newer schema, or an applied migration was another one.
    """
    newest = max(applied, default=0)
    if newest > len(migrations):
        raise StoreRefused(
            f"the store has schema version {newest}, this program knows {len(migrations)}: "
            "it was opened by a newer Syncline; install that version or restore an older backup"
        )
    for migration in migrations[:newest]:
        if applied.get(migration.version) != migration.checksum:
            raise StoreRefused(
                f"migration {migration.version} ({migration.name}) of the store is not the one of this program: "
                "the store was made by a build that was never released"
            )
    return migrations[newest:]
