"""The first admin key: made by the first start, and written to the data directory."""

import asyncio
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from syncline_server.catalog.keys import hash_secret, new_key_id, new_secret
from syncline_server.errors import NotFound
from syncline_server.model import Key, RequestIdentity, Role
from syncline_server.store.abc import Store

PRIVATE_DIRECTORY: Final = 0o700

_FIRST_KEY: Final = "first admin key"
"""Request id under which nodes that start at once make one key between them. No caller can send it: it is no UUID."""


async def ensure_admin_key(store: Store, path: Path) -> bool:
    """Make an admin key in a store that has no key at all; whether one was made here.

    The file comes first: a crash in between leaves a file that the next start replaces, and never a store whose
    only key nobody knows. Nodes that share a directory take turns; of others the store takes the first one's key, and
    the rest have no file.
    """
    if await store.list_keys(limit=1):
        return False
    _make_directory(path)
    turn = _turn(path.parent)
    await asyncio.to_thread(turn.__enter__)
    try:
        if await store.list_keys(limit=1):
            return False
        return await _make_first(store, path)
    finally:
        turn.__exit__(None, None, None)


async def _make_first(store: Store, path: Path) -> bool:
    fingerprint = hashlib.blake2b(_FIRST_KEY.encode(), digest_size=16).digest()
    identity = RequestIdentity(request_id=_FIRST_KEY, fingerprint=fingerprint, time_us=store.clock.now_us())
    try:
        if await make_admin_key(store, path, identity=identity):
            return True
    except NotFound:  # that key was deleted since, and every other with it
        return await make_admin_key(store, path)
    await asyncio.to_thread(path.unlink)
    return False


async def make_admin_key(store: Store, path: Path, *, identity: RequestIdentity | None = None) -> bool:
    """Make an admin key and write it to a file that only this user can read; False: ``identity`` made one before."""
    _make_directory(path)
    key_id = new_key_id()
    secret = new_secret(key_id)
    await asyncio.to_thread(_write_private, path, secret + "\n")
    made = await store.create_key(
        Key(
            key_id=key_id,
            secret_hash=hash_secret(secret),
            role=Role.ADMIN,
            display_name="made by the server",
            create_time_us=store.clock.now_us(),
        ),
        identity=identity,
    )
    return made.key_id == key_id


@contextmanager
def _turn(directory: Path) -> Iterator[None]:
    """One process at a time, as long as the block lasts."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _make_directory(path: Path) -> None:
    path.parent.mkdir(mode=PRIVATE_DIRECTORY, parents=True, exist_ok=True)


def _write_private(path: Path, text: str) -> None:
    """Write a file whole or not at all, with mode 0600 from its first moment."""
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    draft.replace(path)
