"""Keys: T100 (who gets in), T102 (nothing shows a secret), threats 4 and 5."""

import hashlib
import hmac
import logging
import string
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.store_values import request
from syncline_server.catalog import keys as module
from syncline_server.catalog.catalog import Catalog
from syncline_server.catalog.keys import (
    MAX_AGE_SECONDS,
    ROTATION_OVERLAP_US,
    SECRET_MEMORY_SECONDS,
    Keys,
    hash_secret,
    key_id_of,
    new_key_id,
    new_secret,
)
from syncline_server.errors import Aborted, InvalidArgument, NotFound, Unauthenticated, Unavailable
from syncline_server.ingest.records import Limits, record_id_rule
from syncline_server.model import Role
from syncline_server.notify.local import LocalNotifier

DAY_US = 24 * 3_600 * 1_000_000
ADMIN = {"role": Role.ADMIN}
PUSH = {"role": Role.PUSH, "dataset_id": "books", "source_id": "default"}
READ = {"role": Role.READ, "patterns": ("books", "weather-*")}


class Watched:
    """A store that counts reads of keys, lets something happen after one, and can be out of order."""

    def __init__(self, store):
        self._store = store
        self.reads = []
        self.touched = []
        self.after_read = None
        self.broken = False

    def __getattr__(self, name):
        return getattr(self._store, name)

    async def get_key(self, key_id):
        self.reads.append(key_id)
        try:
            return await self._store.get_key(key_id)
        finally:
            if self.after_read is not None:
                happen, self.after_read = self.after_read, None
                await happen()

    async def touch_keys(self, used):
        if self.broken:
            raise Unavailable("STORE_UNAVAILABLE", "broken")
        self.touched.append(dict(used))
        await self._store.touch_keys(used)


class Room:
    def __init__(self, store, clock):
        self.clock = clock
        self.store = Watched(store)
        self.keys = Keys(self.store, clock)
        self.other_node = Keys(store, clock)
        self.catalog = Catalog(store, LocalNotifier(), clock, record_id_rule=record_id_rule(Limits()))

    async def refused(self, secret, keys=None) -> str:
        with pytest.raises(Unauthenticated) as error:
            await (keys or self.keys).authenticate(secret)
        assert error.value.reason == "KEY_INVALID"
        assert not error.value.metadata
        return error.value.message


@pytest.fixture
async def room(durable):
    async with durable.open() as store:
        room = Room(store, durable.clock)
        await room.catalog.create_dataset("books", {})
        yield room


def another_secret_of(key_id):
    return new_secret(key_id)


# -- the format ------------------------------------------------------------------------------------------------


def test_a_secret_has_256_random_bits_and_tells_its_id():
    seen = set()
    for _ in range(200):
        key_id = new_key_id()
        secret = new_secret(key_id)
        prefix, found_id, body = secret.split("_")
        assert (prefix, found_id, key_id_of(secret)) == ("sl", key_id, key_id)
        assert len(body) == 43 + 6 and 62**43 > 2**256 > 62**42
        assert set(body) <= set(string.ascii_letters + string.digits)
        seen |= {key_id, secret}
    assert len(seen) == 400


@given(st.data())
def test_a_typing_error_is_found_without_the_store(data):
    secret = new_secret(new_key_id())
    at = data.draw(st.integers(0, len(secret) - 1))
    put = data.draw(st.sampled_from(string.ascii_letters + string.digits + "_ é"))
    changed = secret[:at] + put + secret[at + 1 :]
    assert (key_id_of(changed) is None) == (changed != secret)
    assert key_id_of(secret[:at] + secret[at + 1 :]) is None


@given(st.text())
def test_other_texts_are_no_secrets(text):
    assert key_id_of(text) is None
    assert key_id_of(f"sl_{text}") is None


async def test_typing_errors_and_other_texts_are_refused_without_a_read(room):
    secret = (await room.keys.create_key(ADMIN)).secret
    room.store.reads.clear()
    for wrong in ("", "x", "Bearer", secret[:-1], secret + "x", secret.upper(), f" {secret}", secret + "\n"):
        assert "copied whole" in await room.refused(wrong)
    assert room.store.reads == []


# -- T100: who gets in -----------------------------------------------------------------------------------------


async def test_t100_each_role_is_recognised(room):
    admin = await room.keys.authenticate((await room.keys.create_key(ADMIN)).secret)
    push = await room.keys.authenticate((await room.keys.create_key(PUSH)).secret)
    read = await room.keys.authenticate((await room.keys.create_key(READ)).secret)
    source = await room.catalog.get_source("books", "default")
    assert (admin.role, admin.source, admin.patterns) == (Role.ADMIN, None, ())
    assert (push.role, push.source, push.source_number) == (Role.PUSH, ("books", "default"), source.number)
    assert (read.role, read.source, read.patterns) == (Role.READ, None, ("books", "weather-*"))
    assert (
        push.may_push("books", "default")
        and not push.may_push("books", "feed")
        and not push.may_read("books")
    )
    assert read.may_read("books") and read.may_read("weather-eu") and not read.may_read("booksellers")
    assert not read.may_push("books", "default")
    assert admin.may_read("anything") and admin.may_push("any", "thing")


async def test_t100_unknown_wrong_expired_and_revoked_look_the_same(room):
    made = await room.keys.create_key({**ADMIN, "expire_time_us": room.clock.now_us() + 1_000_000})
    revoked = await room.keys.create_key(ADMIN)
    await room.keys.authenticate(revoked.secret)
    await room.keys.delete_key(revoked.key.key_id)
    messages = {
        await room.refused(new_secret(new_key_id())),
        await room.refused(another_secret_of(made.key.key_id)),
        await room.refused(revoked.secret),
    }
    await room.keys.authenticate(made.secret)
    room.clock.pass_seconds(1)
    messages.add(await room.refused(made.secret))
    assert len(messages) == 1


async def test_t100_unknown_and_wrong_cost_the_same(room, monkeypatch):
    """Threat 4: one look-up, then none for a while; one hash, one comparison in constant time."""
    done = []
    compare, hashed = hmac.compare_digest, hashlib.sha256
    monkeypatch.setattr(
        module.hmac, "compare_digest", lambda a, b: done.append((len(a), len(b))) or compare(a, b)
    )
    monkeypatch.setattr(module.hashlib, "sha256", lambda data: done.append("hash") or hashed(data))
    made = await room.keys.create_key(ADMIN)
    unknown = new_secret(new_key_id())
    costs = []
    for secret in (another_secret_of(made.key.key_id), unknown):
        room.store.reads.clear()
        for _ in range(3):
            done.clear()
            await room.refused(secret)
        costs.append((len(room.store.reads), list(done)))
    assert costs == [(1, ["hash", (32, 32)])] * 2


async def test_t100_revocation_counts_at_once_here_and_soon_elsewhere(room):
    made = await room.keys.create_key(ADMIN)
    for keys in (room.keys, room.other_node):
        await keys.authenticate(made.secret)
    await room.keys.delete_key(made.key.key_id)
    await room.refused(made.secret)
    await room.other_node.authenticate(made.secret)
    room.clock.pass_seconds(MAX_AGE_SECONDS)
    await room.refused(made.secret, room.other_node)


async def test_t100_a_key_read_before_its_revocation_is_not_kept_after_it(room):
    made = await room.keys.create_key(ADMIN)

    async def meanwhile():
        await room.keys.delete_key(made.key.key_id)

    room.store.after_read = meanwhile
    await room.keys.authenticate(made.secret)
    await room.refused(made.secret)


async def test_t100_an_expiry_and_other_rights_count_at_once(room):
    made = await room.keys.create_key(READ)
    await room.keys.authenticate(made.secret)
    await room.keys.update_key(made.key.key_id, {"patterns": ("films",)})
    principal = await room.keys.authenticate(made.secret)
    assert principal.may_read("films") and not principal.may_read("books")
    await room.keys.update_key(made.key.key_id, {"expire_time_us": 1})
    await room.refused(made.secret)
    await room.keys.update_key(made.key.key_id, {"expire_time_us": None})
    await room.keys.authenticate(made.secret)


async def test_t100_keys_of_a_deleted_source_become_useless(room):
    made = await room.keys.create_key(PUSH)
    await room.catalog.delete_source("books", "default")
    await room.catalog.create_source("books", "default", {})
    await room.refused(made.secret)
    with pytest.raises(NotFound) as missing:
        await room.keys.get_key(made.key.key_id)
    assert missing.value.reason == "KEY_NOT_FOUND"


async def test_a_new_key_counts_although_it_was_unknown_a_moment_ago(room, monkeypatch):
    monkeypatch.setattr(module, "new_key_id", lambda: "abcdefghijkl")
    await room.refused(new_secret("abcdefghijkl"))
    made = await room.keys.create_key(ADMIN)
    await room.keys.authenticate(made.secret)


async def test_keys_in_use_are_read_once_in_a_while(room):
    secret = (await room.keys.create_key(ADMIN)).secret
    room.store.reads.clear()
    for _ in range(3):
        for _ in range(100):
            await room.keys.authenticate(secret)
        room.clock.pass_seconds(MAX_AGE_SECONDS)
    assert len(room.store.reads) == 3


async def test_made_up_ids_do_not_fill_the_memory(room, monkeypatch):
    monkeypatch.setattr(module, "CACHE_ENTRIES", 3)
    for _ in range(10):
        await room.refused(new_secret(new_key_id()))
    assert len(room.keys._cache) == 3


# -- T102: nothing shows a secret --------------------------------------------------------------------------------


async def test_t102_no_repr_error_or_stored_value_shows_a_secret(room, caplog):
    caplog.set_level(logging.DEBUG)
    made = await room.keys.create_key(ADMIN, identity=request("create"))
    principal = await room.keys.authenticate(made.secret)
    shown = [
        repr(made),
        str(made),
        repr(made.key),
        repr(principal),
        repr(room.keys),
        repr(vars(made.key.__class__)),
    ]
    wrong = another_secret_of(made.key.key_id)
    for secret in (wrong, wrong[:-1]):
        try:
            await room.keys.authenticate(secret)
        except Unauthenticated as error:
            shown += ["".join(traceback.format_exception(error)), repr(error), error.message]
    shown.append(caplog.text)
    hidden = (made.secret, wrong, made.secret.split("_")[2][:12], wrong.split("_")[2][:12])
    for text in shown:
        assert not any(secret in text for secret in hidden)
        assert made.key.secret_hash.hex() not in text and repr(made.key.secret_hash) not in text


async def test_t102_the_store_has_the_hash_alone(room, durable):
    made = await room.keys.create_key(ADMIN)
    stored = await room.store.get_key(made.key.key_id)
    assert stored.secret_hash == hashlib.sha256(made.secret.encode()).digest() == hash_secret(made.secret)
    kept = durable.kept()
    body = made.secret.split("_")[2].encode()
    assert made.key.key_id.encode() in kept
    assert body not in kept
    assert body.hex().encode() not in kept


# -- making keys -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({}, "role"),
        ({"role": 1}, "role"),
        ({"role": Role.ADMIN, "dataset_id": "books", "source_id": "default"}, "source"),
        ({"role": Role.ADMIN, "patterns": ("*",)}, "datasets"),
        ({"role": Role.PUSH}, "source"),
        ({"role": Role.PUSH, "dataset_id": "books", "source_id": ""}, "source"),
        ({**PUSH, "patterns": ("books",)}, "datasets"),
        ({"role": Role.READ}, "datasets"),
        ({"role": Role.READ, "patterns": ("a",) * 101}, "datasets"),
        ({**READ, "dataset_id": "books", "source_id": "default"}, "source"),
        ({**ADMIN, "display_name": "a\nb"}, "display_name"),
        ({**ADMIN, "display_name": "x" * 201}, "display_name"),
        ({**ADMIN, "expire_time_us": 1}, "expire_time"),
        ({**ADMIN, "secret_hash": b""}, "secret_hash"),
        ({**ADMIN, "key_id": "mine"}, "key_id"),
    ],
)
@pytest.mark.parametrize("validate_only", [False, True])
async def test_wrong_keys_are_refused(room, settings, field, validate_only):
    with pytest.raises(InvalidArgument) as refused:
        await room.keys.create_key(settings, validate_only=validate_only)
    assert (refused.value.reason, [name for name, _ in refused.value.fields]) == ("INVALID_REQUEST", [field])
    assert not await room.keys.list_keys(limit=10)


@pytest.mark.parametrize("pattern", ["books", "b", "weather-*", "a.*", "a*", "*", "a" * 63, "a" * 63 + "*"])
async def test_patterns_that_are_accepted(room, pattern):
    assert (await room.keys.create_key({"role": Role.READ, "patterns": (pattern,)})).key.patterns == (
        pattern,
    )


@pytest.mark.parametrize(
    "pattern", ["", "**", "*a", "a*b", "A*", "a/*", "a.", "-*", "a" * 64, "a" * 64 + "*", "a\n"]
)
async def test_patterns_that_are_refused(room, pattern):
    with pytest.raises(InvalidArgument) as refused:
        await room.keys.create_key({"role": Role.READ, "patterns": ("books", pattern)})
    assert [name for name, _ in refused.value.fields] == ["datasets[1]"]


async def test_a_push_key_needs_its_source(room):
    for validate_only in (False, True):
        with pytest.raises(NotFound) as missing:
            await room.keys.create_key({**PUSH, "source_id": "feed"}, validate_only=validate_only)
        assert missing.value.reason == "SOURCE_NOT_FOUND"


async def test_validate_only_makes_no_key(room):
    checked = await room.keys.create_key(READ, validate_only=True)
    assert (checked.secret, checked.key.key_id, checked.key.patterns) == ("", "", READ["patterns"])
    made = await room.keys.create_key(READ)
    rotated = await room.keys.rotate_key(made.key.key_id, validate_only=True)
    assert (rotated.secret, rotated.key.key_id) == ("", "")
    await room.keys.update_key(made.key.key_id, {"display_name": "x"}, validate_only=True)
    await room.keys.delete_key(made.key.key_id, validate_only=True)
    (stored,) = await room.keys.list_keys(limit=10)
    assert (stored.display_name, stored.expire_time_us) == ("", None)


async def test_g5_a_retried_create_shows_the_secret_again_for_a_while(room):
    made = await room.keys.create_key(READ, identity=request("create"))
    again = await room.keys.create_key(READ, identity=request("create"))
    assert (again.key.key_id, again.secret) == (made.key.key_id, made.secret)
    elsewhere = await room.other_node.create_key(READ, identity=request("create"))
    assert (elsewhere.key.key_id, elsewhere.secret) == (made.key.key_id, "")
    room.clock.pass_seconds(SECRET_MEMORY_SECONDS)
    assert (await room.keys.create_key(READ, identity=request("create"))).secret == ""
    assert len(await room.keys.list_keys(limit=10)) == 1
    with pytest.raises(InvalidArgument):
        await room.keys.create_key(ADMIN, identity=request("create", b"other"))


async def test_secrets_are_not_remembered_for_long_or_without_need(room, monkeypatch):
    monkeypatch.setattr(module, "SECRETS_REMEMBERED", 3)
    await room.keys.create_key(ADMIN)
    assert not room.keys._told
    for number in range(5):
        await room.keys.create_key(ADMIN, identity=request(str(number)))
    assert len(room.keys._told) == 3
    room.clock.pass_seconds(SECRET_MEMORY_SECONDS)
    await room.keys.create_key(ADMIN, identity=request("last"))
    assert len(room.keys._told) == 1


async def test_updates_leave_other_fields_and_rights_alone(room):
    made = (await room.keys.create_key({**PUSH, "display_name": "a"})).key
    same = {"role": Role.PUSH, "dataset_id": "books", "source_id": "default", "display_name": "b"}
    updated = await room.keys.update_key(made.key_id, same, etag=made.etag)
    assert (updated.display_name, updated.source_number) == ("b", made.source_number)
    with pytest.raises(Aborted):
        await room.keys.update_key(made.key_id, {"display_name": "c"}, etag=made.etag)
    with pytest.raises(Aborted):
        await room.keys.delete_key(made.key_id, etag=made.etag)
    for changes, field in (
        ({"role": Role.ADMIN}, "role"),
        ({"source_id": "feed"}, "source_id"),
        ({"secret_hash": b"x" * 32}, "secret_hash"),
        ({"patterns": ("*",)}, "datasets"),
        ({"display_name": "\x1b"}, "display_name"),
    ):
        with pytest.raises(InvalidArgument) as refused:
            await room.keys.update_key(made.key_id, changes)
        assert [name for name, _ in refused.value.fields] == [field]
    assert (await room.keys.get_key(made.key_id)).generation == updated.generation
    with pytest.raises(NotFound):
        await room.keys.update_key("missing", {"display_name": "x"})


async def test_two_updates_of_different_fields_both_stay(room):
    made = (await room.keys.create_key(READ)).key

    async def meanwhile():
        await room.other_node.update_key(made.key_id, {"patterns": ("films",)})

    room.store.after_read = meanwhile
    updated = await room.keys.update_key(made.key_id, {"display_name": "ours"})
    assert (updated.display_name, updated.patterns) == ("ours", ("films",))


async def test_g5_retried_updates_and_deletes_have_one_effect(room):
    made = (await room.keys.create_key(READ)).key
    update = {"etag": made.etag, "identity": request("update")}
    first = await room.keys.update_key(made.key_id, {"display_name": "x"}, **update)
    assert await room.keys.update_key(made.key_id, {"display_name": "x"}, **update) == first
    delete = {"etag": first.etag, "identity": request("delete")}
    await room.keys.delete_key(made.key_id, **delete)
    await room.keys.delete_key(made.key_id, **delete)
    with pytest.raises(NotFound):
        await room.keys.delete_key(made.key_id, identity=request("another"))
    with pytest.raises(NotFound):
        await room.keys.delete_key(made.key_id)


# -- rotation ----------------------------------------------------------------------------------------------------


async def test_rotation_has_an_overlap_of_a_day(room):
    old = await room.keys.create_key({**READ, "display_name": "Reader"})
    new = await room.keys.rotate_key(old.key.key_id)
    assert new.key.key_id != old.key.key_id
    assert (new.key.patterns, new.key.display_name, new.key.expire_time_us) == (
        READ["patterns"],
        "Reader",
        None,
    )
    room.clock.pass_seconds(ROTATION_OVERLAP_US / 1_000_000 - 1)
    for made in (old, new):
        assert (await room.keys.authenticate(made.secret)).patterns == READ["patterns"]
    room.clock.pass_seconds(1)
    await room.refused(old.secret)
    await room.keys.authenticate(new.secret)


async def test_rotation_of_a_leaked_key_ends_it_at_once(room):
    old = await room.keys.create_key(PUSH)
    await room.keys.authenticate(old.secret)
    for past in (0, -5, 1, room.clock.now_us()):
        new = await room.keys.rotate_key(old.key.key_id, expire_time_us=past)
        await room.refused(old.secret)
        assert (await room.keys.authenticate(new.secret)).may_push("books", "default")


async def test_rotation_prolongs_no_life(room):
    now_us = room.clock.now_us()
    old = await room.keys.create_key({**ADMIN, "expire_time_us": now_us + DAY_US // 2})
    room.clock.pass_seconds(3_600)
    new = await room.keys.rotate_key(old.key.key_id, expire_time_us=now_us + 10 * DAY_US)
    assert (await room.keys.get_key(old.key.key_id)).expire_time_us == now_us + DAY_US // 2
    assert new.key.expire_time_us == room.clock.now_us() + DAY_US // 2


async def test_g5_a_retried_rotation_makes_one_key_and_ends_the_old_one(room, monkeypatch):
    old = await room.keys.create_key(READ)

    async def crash(*arguments, **more):
        raise Unavailable("STORE_UNAVAILABLE", "in between")

    with monkeypatch.context() as patched:
        patched.setattr(room.store, "update_key", crash, raising=False)
        with pytest.raises(Unavailable):
            await room.keys.rotate_key(old.key.key_id, identity=request("rotate"))
    assert (await room.keys.get_key(old.key.key_id)).expire_time_us is None
    again = await room.keys.rotate_key(old.key.key_id, identity=request("rotate"))
    await room.keys.authenticate(again.secret)
    assert (
        await room.keys.get_key(old.key.key_id)
    ).expire_time_us == room.clock.now_us() + ROTATION_OVERLAP_US
    assert len(await room.keys.list_keys(limit=10)) == 2


async def test_a_missing_key_cannot_be_rotated(room):
    with pytest.raises(NotFound):
        await room.keys.rotate_key("missing")


# -- last use ----------------------------------------------------------------------------------------------------


async def test_last_use_is_shown_at_once_and_written_down_together(room):
    made = [await room.keys.create_key(ADMIN) for _ in range(2)]
    for _ in range(3):
        room.clock.pass_seconds(1)
        for one in made:
            await room.keys.authenticate(one.secret)
    used_us = room.clock.now_us()
    assert (await room.keys.get_key(made[0].key.key_id)).last_used_us == used_us
    assert {key.last_used_us for key in await room.keys.list_keys(limit=10)} == {used_us}
    assert (await room.other_node.get_key(made[0].key.key_id)).last_used_us is None
    await room.keys.flush_last_used()
    await room.keys.flush_last_used()
    assert room.store.touched == [{one.key.key_id: used_us for one in made}]
    assert (await room.other_node.get_key(made[0].key.key_id)).last_used_us == used_us


async def test_a_refused_use_is_no_use(room):
    made = await room.keys.create_key(ADMIN)
    await room.refused(another_secret_of(made.key.key_id))
    await room.refused(new_secret(new_key_id()))
    await room.keys.flush_last_used()
    assert room.store.touched == []


async def test_what_could_not_be_written_is_written_later(room):
    first, second = [await room.keys.create_key(ADMIN) for _ in range(2)]
    await room.keys.authenticate(first.secret)
    await room.keys.authenticate(second.secret)
    early_us = room.clock.now_us()
    room.store.broken = True
    with pytest.raises(Unavailable):
        await room.keys.flush_last_used()
    room.clock.pass_seconds(1)
    await room.keys.authenticate(second.secret)
    room.store.broken = False
    await room.keys.flush_last_used()
    assert room.store.touched == [{first.key.key_id: early_us, second.key.key_id: early_us + 1_000_000}]
