"""Keys: who may do what.

A key is told to its holder once, as ``sl_<id>_<secret><checksum>``: the public id (12 characters), 256 random
bits (43) and their CRC-32 (6), all in letters and digits. The checksum tells a mistyped key from a wrong one
without asking the store, and lets scanners of source code recognise one. The store holds the SHA-256 of the
whole text: of 256 random bits nothing slower is needed.

A key that is unknown, wrong, expired or revoked gets the same answer, after the same look-up and the same
comparison in constant time. What was read of the store, also that there is no such key, is kept for
MAX_AGE_SECONDS; a change made through this process counts at once.
"""

import hashlib
import hmac
import re
import secrets
import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, cast

from syncline_server.catalog import checks
from syncline_server.clock import Clock
from syncline_server.errors import Aborted, NotFound, Unauthenticated
from syncline_server.model import Key, Principal, RequestIdentity, Role
from syncline_server.store.abc import Store

MAX_AGE_SECONDS: Final = 10.0
"""After this a cached key is read again."""
CACHE_ENTRIES: Final = 10_000
"""The least recently used go first, so that made-up ids cannot fill the memory."""
ROTATION_OVERLAP_US: Final = 24 * 3_600 * 1_000_000
"""How long a replaced key goes on by default."""
SHORTEST_LIFE_US: Final = 3_600 * 1_000_000
"""Of a key that replaces another: one that was ended early can still be replaced."""
SECRET_MEMORY_SECONDS: Final = 600.0
"""How long the answer to a retried CreateKey can still show the secret."""
SECRETS_REMEMBERED: Final = 1_000
UPDATE_ATTEMPTS: Final = 5

_ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ID_ALPHABET: Final = "0123456789abcdefghijklmnopqrstuvwxyz"
_ID_CHARACTERS: Final = 12
_SECRET_CHARACTERS: Final = 43
_CHECKSUM_CHARACTERS: Final = 6
_SHAPE: Final = re.compile(r"sl_([0-9a-z]{12})_[0-9A-Za-z]{49}")
_NO_HASH: Final = bytes(32)

_CREATE_FIELDS: Final = frozenset(
    {"role", "dataset_id", "source_id", "patterns", "display_name", "expire_time_us"}
)
_UPDATE_FIELDS: Final = frozenset({"patterns", "display_name", "expire_time_us"})
_FIXED_FIELDS: Final = frozenset({"role", "dataset_id", "source_id"})


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """A key that was just made."""

    key: Key
    secret: str = field(repr=False)
    """What its holder sends. Empty when nothing was made (validate_only), or in the answer to a retry when the
    secret of the first answer is not known any more."""


@dataclass(frozen=True, slots=True)
class _Entry:
    key: Key | None
    """None: there is no such key."""
    principal: Principal | None
    fresh_until: float


def new_secret(key_id: str) -> str:
    """A fresh secret for a key, as its holder sends it."""
    body = f"sl_{key_id}_{_base62(secrets.randbits(256), _SECRET_CHARACTERS)}"
    return body + _checksum(body)


def new_key_id() -> str:
    """A fresh public id."""
    return "".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_CHARACTERS))


def key_id_of(secret: str) -> str | None:
    """The public id in a secret; None when it is no secret of ours, or one with a typing error."""
    match = _SHAPE.fullmatch(secret)
    if match is None:
        return None
    body, checksum = secret[:-_CHECKSUM_CHARACTERS], secret[-_CHECKSUM_CHARACTERS:]
    return match[1] if _checksum(body) == checksum else None


def hash_secret(secret: str) -> bytes:
    """What the store holds of a secret: its SHA-256."""
    return hashlib.sha256(secret.encode()).digest()


def principal_of(key: Key) -> Principal:
    """Who calls with this key."""
    return Principal(
        key_id=key.key_id,
        role=key.role,
        source=(key.dataset_id, key.source_id) if key.role is Role.PUSH else None,
        source_number=key.source_number,
        patterns=key.patterns,
    )


class Keys:
    """The keys of a store."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._cache: OrderedDict[str, _Entry] = OrderedDict()
        self._forgotten = 0
        """Grows with every drop: what was being read meanwhile may be old already and is not kept."""
        self._last_used_us: dict[str, int] = {}
        self._told: OrderedDict[str, tuple[str, float]] = OrderedDict()

    # -- who calls ----------------------------------------------------------------------------------------

    async def authenticate(self, secret: str) -> Principal:
        """Find who calls. Raises Unauthenticated(KEY_INVALID)."""
        shape = _SHAPE.fullmatch(secret)
        entry = None if shape is None else self._cache.get(shape[1])
        if entry is None or self._clock.monotonic() >= entry.fresh_until:
            key_id = key_id_of(secret)  # with its checksum, which costs more than a look at what is known
            if key_id is None:
                raise Unauthenticated(
                    "KEY_INVALID", "this is not a complete key: check that it was copied whole"
                )
            entry = await self._read(key_id)
        key = entry.key
        matches = hmac.compare_digest(hash_secret(secret), _NO_HASH if key is None else key.secret_hash)
        now_us = self._clock.now_us()
        if key is None or not matches or (key.expire_time_us is not None and key.expire_time_us <= now_us):
            raise Unauthenticated("KEY_INVALID", "this key is unknown, expired or revoked")
        self._last_used_us[key.key_id] = now_us
        return entry.principal or principal_of(key)

    async def _read(self, key_id: str) -> _Entry:
        forgotten = self._forgotten
        try:
            key = await self._store.get_key(key_id)
        except NotFound:
            key = None
        principal = None if key is None else principal_of(key)
        entry = _Entry(key, principal, self._clock.monotonic() + MAX_AGE_SECONDS)
        if forgotten == self._forgotten:
            self._cache[key_id] = entry
            self._cache.move_to_end(key_id)
            if len(self._cache) > CACHE_ENTRIES:
                self._cache.popitem(last=False)
        return entry

    def forget(self, key_id: str) -> None:
        """Drop what is cached of a key; its next use reads it again."""
        self._forgotten += 1
        self._cache.pop(key_id, None)

    async def flush_last_used(self) -> None:
        """Write down when keys were used since the last flush. Call it about once a minute.

        What could not be written is kept for the next flush. Raises what the store raises.
        """
        used, self._last_used_us = self._last_used_us, {}
        if used:
            try:
                await self._store.touch_keys(used)
            except BaseException:
                self._last_used_us = used | self._last_used_us
                raise

    # -- the keys themselves ------------------------------------------------------------------------------

    async def create_key(
        self,
        settings: Mapping[str, object],
        *,
        identity: RequestIdentity | None = None,
        validate_only: bool = False,
    ) -> NewKey:
        """Make a key. Settings go by their names in ``Key``; ``role`` is required.

        Raises InvalidArgument(INVALID_REQUEST), NotFound(DATASET_NOT_FOUND, SOURCE_NOT_FOUND).
        """
        checks.refuse(checks.check_changes(settings, allowed=_CREATE_FIELDS, fixed=()))
        if not isinstance(settings.get("role"), Role):
            checks.refuse([("role", "must be ADMIN, PUSH or READ")])
        now_us = self._clock.now_us()
        wanted = Key(key_id="", secret_hash=b"", create_time_us=now_us, **cast("dict[str, Any]", settings))
        problems = _scope_problems(wanted) + checks.check_display_name(wanted.display_name)
        if wanted.expire_time_us is not None and wanted.expire_time_us <= now_us:
            problems.append(("expire_time", "must be in the future"))
        checks.refuse(problems)
        if wanted.role is Role.PUSH:
            source = await self._store.get_source(wanted.dataset_id, wanted.source_id)
            wanted = replace(wanted, source_number=source.number)
        return await self._create(wanted, identity, validate_only=validate_only)

    async def get_key(self, key_id: str) -> Key:
        """Read a key. Raises NotFound(KEY_NOT_FOUND)."""
        return self._with_last_use(await self._store.get_key(key_id))

    async def list_keys(self, *, after: str = "", limit: int) -> Sequence[Key]:
        """At most ``limit`` keys whose ids follow ``after``."""
        return [self._with_last_use(key) for key in await self._store.list_keys(after=after, limit=limit)]

    async def update_key(
        self,
        key_id: str,
        changes: Mapping[str, object],
        *,
        etag: str = "",
        identity: RequestIdentity | None = None,
        validate_only: bool = False,
    ) -> Key:
        """Set the fields given, by their names in ``Key``; the others stay. An expiry in the past ends it now.

        Raises InvalidArgument(INVALID_REQUEST), NotFound(KEY_NOT_FOUND), Aborted(ETAG_MISMATCH).
        """
        for attempt in range(UPDATE_ATTEMPTS):
            current = await self._store.get_key(key_id)
            same = {
                name for name in _FIXED_FIELDS & changes.keys() if getattr(current, name) == changes[name]
            }
            checks.refuse(
                checks.check_changes(changes.keys() - same, allowed=_UPDATE_FIELDS, fixed=_FIXED_FIELDS)
            )
            wanted = replace(current, **cast("dict[str, Any]", changes))
            checks.refuse(_scope_problems(wanted) + checks.check_display_name(wanted.display_name))
            if validate_only:
                checks.refuse_other_etag(etag, current)
                return wanted
            expected = checks.expected_generation(etag, current) if etag else current.generation
            try:
                return await self._store.update_key(wanted, expected_generation=expected, identity=identity)
            except Aborted:
                if etag or attempt == UPDATE_ATTEMPTS - 1:
                    raise
            finally:
                self.forget(key_id)
        raise AssertionError("the last attempt returned or raised")

    async def rotate_key(
        self,
        key_id: str,
        *,
        expire_time_us: int | None = None,
        identity: RequestIdentity | None = None,
        validate_only: bool = False,
    ) -> NewKey:
        """Make a second key with the same rights, and let the first end at ``expire_time_us``.

        None: in 24 hours; in the past: now. It never ends later than it would have. A key that had a limited
        life is followed by one with a life as long. Raises NotFound(KEY_NOT_FOUND).
        """
        old = await self._store.get_key(key_id)
        now_us = self._clock.now_us()
        lifetime_us = None if old.expire_time_us is None else old.expire_time_us - old.create_time_us
        wanted = replace(
            old,
            key_id="",
            secret_hash=b"",
            generation=1,
            create_time_us=now_us,
            last_used_us=None,
            expire_time_us=None if lifetime_us is None else now_us + max(lifetime_us, SHORTEST_LIFE_US),
        )
        made = await self._create(wanted, identity, validate_only=validate_only)
        if not validate_only:
            # After the new key is safe. When this fails, a retry finds the new key made and does only this.
            end_us = now_us + ROTATION_OVERLAP_US if expire_time_us is None else max(expire_time_us, now_us)
            if old.expire_time_us is None or end_us < old.expire_time_us:
                await self.update_key(key_id, {"expire_time_us": end_us})
        return made

    async def delete_key(
        self,
        key_id: str,
        *,
        etag: str = "",
        identity: RequestIdentity | None = None,
        validate_only: bool = False,
    ) -> None:
        """Revoke a key: in this process at once, elsewhere within MAX_AGE_SECONDS.

        Raises NotFound(KEY_NOT_FOUND), Aborted(ETAG_MISMATCH).
        """
        try:
            current = await self._store.get_key(key_id)
        except NotFound:
            if identity is None or validate_only:
                raise
            # Only the store knows whether this very request deleted it.
            await self._store.delete_key(key_id, expected_generation=None, identity=identity)
            return
        if validate_only:
            checks.refuse_other_etag(etag, current)
            return
        expected = checks.expected_generation(etag, current) if etag else None
        try:
            await self._store.delete_key(key_id, expected_generation=expected, identity=identity)
        finally:
            self.forget(key_id)
            self._last_used_us.pop(key_id, None)

    async def _create(self, wanted: Key, identity: RequestIdentity | None, *, validate_only: bool) -> NewKey:
        if validate_only:
            return NewKey(key=wanted, secret="")
        key_id = new_key_id()
        secret = new_secret(key_id)
        made = await self._store.create_key(
            replace(wanted, key_id=key_id, secret_hash=hash_secret(secret)), identity=identity
        )
        self.forget(made.key_id)
        if made.key_id != key_id:  # a retry: this is the key of the first try
            return NewKey(key=made, secret=self._told_before(made.key_id))
        if identity is not None:
            self._told[key_id] = secret, self._clock.monotonic() + SECRET_MEMORY_SECONDS
            self._forget_told()
        return NewKey(key=made, secret=secret)

    def _told_before(self, key_id: str) -> str:
        self._forget_told()
        return self._told.get(key_id, ("", 0.0))[0]

    def _forget_told(self) -> None:
        now = self._clock.monotonic()
        while self._told:
            _, until = next(iter(self._told.values()))
            if until > now and len(self._told) <= SECRETS_REMEMBERED:
                return
            self._told.popitem(last=False)

    def _with_last_use(self, key: Key) -> Key:
        used_us = self._last_used_us.get(key.key_id)
        return key if used_us is None else replace(key, last_used_us=used_us)


def _scope_problems(key: Key) -> checks.Problems:
    problems: checks.Problems = []
    if key.role is Role.PUSH:
        problems += checks.check_id("source", key.dataset_id) or checks.check_id("source", key.source_id)
    elif key.dataset_id or key.source_id:
        problems.append(("source", "is for PUSH keys only"))
    if key.role is Role.READ:
        problems += checks.check_patterns(key.patterns)
    elif key.patterns:
        problems.append(("datasets", "is for READ keys only"))
    return problems


def _base62(number: int, characters: int) -> str:
    digits = ""
    for _ in range(characters):
        number, digit = divmod(number, 62)
        digits = _ALPHABET[digit] + digits
    return digits


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), _CHECKSUM_CHARACTERS)
