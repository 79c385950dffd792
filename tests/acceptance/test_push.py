"""Push and delete through the SDK against a real server: what a realtime push API owes (O-20 to O-41)."""

import base64
import random

import pytest

import syncline

BOOK = {"isbn": "978-0060589462", "title": "Zen and the Art of Motorcycle Maintenance", "year": 1974}
OTHER = {"isbn": "978-0141439518", "title": "Pride and Prejudice", "year": 1813}


def statuses(result):
    return [entry.status.name for entry in result.results]


async def contents(dataset):
    return {record.record_id: record.data async for record in dataset.records()}


@pytest.fixture
async def books(client):
    await client.create_dataset("books", identity=syncline.by_key("isbn"))
    return client.dataset("books")


async def test_o26_one_record_or_many(books):
    """O-26: an array of one and an array of many are the same thing."""
    one = await books.push([BOOK])
    many = await books.push([BOOK, OTHER])

    assert statuses(one) == ["CREATED"]
    assert statuses(many) == ["UNCHANGED", "CREATED"]
    assert (one.revision, many.revision) == (1, 2)


async def test_an_empty_push_does_nothing(books):
    result = await books.push([])

    assert (result.revision, list(result.results)) == (0, [])


async def test_o31_equal_key_overwrites_whole(books):
    """O-31, B-41: no merge; fields absent in the new record are gone."""
    await books.push([BOOK])
    result = await books.push([{"isbn": BOOK["isbn"], "title": "Zen"}])
    record = await books.get(result.results[0].record_id)

    assert statuses(result) == ["UPDATED"]
    assert record.data == {"isbn": BOOK["isbn"], "title": "Zen"}
    assert record.revision == result.revision == 2
    assert record.create_time < record.update_time


async def test_the_record_id_is_the_key(books):
    result = await books.push([BOOK])

    assert result.results[0].record_id == result.results[0].key == "978-0060589462"


async def test_o33_the_last_of_a_call_wins(books):
    """O-33, B-08, T31: repeats are fine, in order, each key counts once."""
    result = await books.push([BOOK, OTHER, {**BOOK, "title": "second"}, {**BOOK, "title": "third"}])

    assert statuses(result) == ["SUPERSEDED", "CREATED", "SUPERSEDED", "CREATED"]
    assert (await books.get("978-0060589462")).data["title"] == "third"


async def test_g15_unchanged_makes_no_revision_and_no_event(books):
    """T34: equal canonical bytes are unchanged, whatever the order of members."""
    first = await books.push([BOOK])
    again = await books.push([dict(reversed(BOOK.items()))])

    assert statuses(again) == ["UNCHANGED"]
    assert again.revision == first.revision == 1


@pytest.mark.parametrize(("before", "after"), [(1, True), (1, 1.0), (1, "1"), (0, False), (None, "")])
async def test_t34_values_that_python_calls_equal_are_changes(books, before, after):
    """T34: 1, 1.0 and true are three values."""
    await books.push([{"isbn": "x", "n": before}])
    result = await books.push([{"isbn": "x", "n": after}])
    record = await books.get("x")

    assert statuses(result) == ["UPDATED"]
    assert (record.data["n"], type(record.data["n"])) == (after, type(after))


async def test_integers_of_any_size_survive(books):
    """M18: no double in between."""
    numbers = [2**53 + 1, 2**64, -(2**200), 10**300]
    await books.push([{"isbn": "x", "n": numbers}])

    assert (await books.get("x")).data["n"] == numbers


async def test_o30_the_default_identity_is_the_content(client):
    """O-30: the same values are one record, one different value is another."""
    await client.create_dataset("readings")
    readings = client.dataset("readings")
    result = await readings.push([{"t": 1}, {"t": 1}, {"t": 2}])
    again = await readings.push([{"t": 2}])

    assert statuses(result) == ["SUPERSEDED", "CREATED", "CREATED"]
    assert statuses(again) == ["UNCHANGED"]
    assert len(result.results[1].record_id) == 40
    assert len(await contents(readings)) == 2


async def test_o31_a_key_of_several_fields(client):
    """O-31: several fields, dotted paths; "1" and 1 never meet."""
    await client.create_dataset("measures", identity=syncline.by_key("station.id", "hour"))
    measures = client.dataset("measures")
    rows = [
        {"station": {"id": "a"}, "hour": 1},
        {"station": {"id": "a"}, "hour": "1"},
        {"station": {"id": "a,~1"}, "hour": ""},
    ]
    result = await measures.push(rows)

    assert statuses(result) == ["CREATED"] * 3
    assert [r.key for r in result.results] == [("a", 1), ("a", "1"), ("a,~1", "")]


async def test_append_makes_a_record_of_every_push(client):
    await client.create_dataset("log", identity=syncline.append())
    log = client.dataset("log")
    result = await log.push([{"line": 1}, {"line": 1}])

    assert statuses(result) == ["CREATED", "CREATED"]
    assert len(await contents(log)) == 2
    with pytest.raises(syncline.SynclineError) as refused:
        await log.delete([{"line": 1}])
    assert refused.value.reason == "IDENTITY_NOT_ADDRESSABLE"
    await log.delete_ids([result.results[0].record_id])
    assert len(await contents(log)) == 1


async def test_o29_file_fields_are_values_like_any_other(client):
    """O-29: an object of content and content-type; it takes part in the fingerprint, also on delete."""
    picture = {"content": base64.b64encode(bytes(range(256))).decode(), "content-type": "image/jpg"}
    await client.create_dataset("pictures")
    pictures = client.dataset("pictures")
    await pictures.push([{"name": "a", "file": picture}])
    missed = await pictures.delete([{"name": "a", "file": {**picture, "content-type": "image/jpeg"}}])
    found = await pictures.delete([{"name": "a", "file": picture}])

    assert (statuses(missed), statuses(found)) == (["NOT_FOUND"], ["DELETED"])


FILES = {
    "properties": {
        "file": {
            "properties": {
                "content": {
                    "contentEncoding": "base64",
                    "pattern": "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}[A-Za-z0-9+/=]=)?$",
                }
            }
        }
    }
}


@pytest.fixture
async def files(client):
    await client.create_dataset("files", identity=syncline.by_key("name"), schema=FILES)
    return client.dataset("files")


def with_file(name, content):
    if isinstance(content, bytes):
        content = base64.b64encode(content).decode()
    return {"name": name, "file": {"content": content, "content-type": "image/jpg"}}


async def test_o29_what_is_not_base64_is_told_with_its_place(files):
    """O-29: an error of that record, under the schema of docs/how-to/files.md; nothing of the call is stored."""
    wrong = ["A", "AAA", "AAAA=", "A===", "AA==AAAA", "AA-_", "AAAA\n", " AAAA"]
    with pytest.raises(syncline.InvalidRecords) as refused:
        await files.push(
            [with_file("good", b"x"), *(with_file(f"{n}", text) for n, text in enumerate(wrong))]
        )

    assert [(v.index, v.pointer, v.keyword) for v in refused.value.violations] == [
        (index, "/file/content", "pattern") for index in range(1, len(wrong) + 1)
    ]
    assert await contents(files) == {}
    assert (await files.push([with_file(f"{n}", bytes(n)) for n in range(4)])).revision == 1


async def test_o29_a_large_file_is_accepted_a_larger_one_is_not(files):
    """O-29: what the schema costs allows the largest record; limits of record and call are told as such."""
    large = with_file("large", random.Random(29).randbytes(700 << 10))
    await files.push([large])
    assert (await files.get("large")).data == large

    with pytest.raises(syncline.InvalidRecords) as too_large:
        await files.push([with_file("small", b"x"), with_file("larger", bytes(800 << 10))])
    assert [(v.index, v.keyword) for v in too_large.value.violations] == [(1, "size")]
    with pytest.raises(syncline.LimitExceeded) as too_much:
        await files.push([{**large, "name": f"{n}"} for n in range(5)])
    assert (too_much.value.reason, too_much.value.metadata["limit"]) == ("LIMIT_EXCEEDED", "bytes_per_call")
    assert list(await contents(files)) == ["large"]


async def test_o34_delete_by_values_uses_the_key_alone(books):
    """O-34: with a unique key only the key fields matter."""
    await books.push([BOOK, OTHER])
    result = await books.delete([{"isbn": BOOK["isbn"], "title": "something else"}])

    assert statuses(result) == ["DELETED"]
    assert list(await contents(books)) == [OTHER["isbn"]]


async def test_o36_delete_of_what_is_not_there_is_no_error(books):
    """O-36, B-38: reported with its id, no event; a repeat in the call is superseded."""
    await books.push([BOOK])
    by_value = await books.delete([{"isbn": "unknown"}, BOOK, BOOK])
    by_id = await books.delete_ids(["unknown", BOOK["isbn"]])

    assert statuses(by_value) == ["NOT_FOUND", "SUPERSEDED", "DELETED"]
    assert by_value.results[0].record_id == "unknown"
    assert statuses(by_id) == ["NOT_FOUND", "NOT_FOUND"]
    assert by_id.revision == by_value.revision == 2


async def test_b39_the_record_id_is_stable_over_delete_and_reinsert(books):
    first = await books.push([BOOK])
    await books.delete([BOOK])
    second = await books.push([BOOK])

    assert first.results[0].record_id == second.results[0].record_id
    assert statuses(second) == ["CREATED"]


async def test_t29_b34_one_bad_record_refuses_the_call_and_every_error_is_told(client):
    """T29, B-34, B-35: index, pointer, keyword, message of each; nothing is written."""
    schema = {
        "type": "object",
        "properties": {"isbn": {"type": "string"}, "year": {"type": "integer"}},
        "required": ["isbn", "title"],
    }
    await client.create_dataset("strict", identity=syncline.by_key("isbn"), schema=schema)
    strict = client.dataset("strict")
    good = [{"isbn": f"{n}", "title": "t"} for n in range(997)]
    bad = [{"isbn": "x", "year": "soon"}, {"title": "no key"}, {"isbn": "y", "title": "t", "year": 1.5}]
    with pytest.raises(syncline.InvalidRecords) as refused:
        await strict.push([*good[:500], *bad, *good[500:]])
    found = {(v.index, v.pointer, v.keyword) for v in refused.value.violations}

    assert refused.value.reason == "RECORD_INVALID"
    assert {(500, "", "required"), (500, "/year", "type"), (502, "/year", "type")} <= found
    assert {v.index for v in refused.value.violations} == {500, 501, 502}
    assert all(v.message for v in refused.value.violations)
    assert (await client.get_dataset("strict")).revision == 0


async def test_more_violations_than_an_error_can_carry_are_all_told(books):
    """An error carries 20; the SDK asks for the rest."""
    with pytest.raises(syncline.InvalidRecords) as refused:
        await books.push([{"title": f"{n}"} for n in range(300)])

    assert [v.index for v in refused.value.violations] == list(range(300))


async def test_partial_applies_the_good_ones(books):
    result = await books.push([BOOK, {"title": "no key"}, OTHER], partial=True)

    assert statuses(result) == ["CREATED", "INVALID", "CREATED"]
    assert [v.index for v in result.violations] == [1]
    assert len(await contents(books)) == 2


async def test_o28_too_much_for_one_call_is_refused_whole(books):
    """O-28: the error names the limit, nothing of it is stored."""
    with pytest.raises(syncline.SynclineError) as refused:
        await books.push([{"isbn": f"{n}"} for n in range(10_001)])

    assert refused.value.reason == "LIMIT_EXCEEDED"
    assert refused.value.metadata["limit"] == "records_per_call"
    assert await contents(books) == {}


async def test_the_largest_record_comes_back_through_every_door(books):
    """The largest accepted record fits every default client limit."""
    largest = {"isbn": "large", "text": "x" * ((1 << 20) - 30)}
    await books.push([largest])
    page = await books.sync()

    assert (await books.get("large")).data == largest
    assert [change.data for change in page.changes] == [largest]
    with pytest.raises(syncline.SynclineError) as refused:
        await books.push([{"isbn": "larger", "text": "x" * (1 << 20)}])
    assert "bytes_per_record" in str(refused.value.metadata) or refused.value.violations[0].keyword == "size"


async def test_conditions_hold_or_refuse(books):
    """if_revision and if_absent, per record, under the lock."""
    first = await books.push([BOOK])
    with pytest.raises(syncline.SynclineError) as absent:
        await books.push([OTHER, syncline.IfAbsent({**BOOK, "title": "lost"})])
    with pytest.raises(syncline.SynclineError) as stale:
        await books.push([syncline.IfRevision({**BOOK, "title": "lost"}, 99)])
    result = await books.push(
        [syncline.IfRevision({**BOOK, "title": "won"}, first.revision), syncline.IfAbsent(OTHER)]
    )

    assert absent.value.reason == stale.value.reason == "CONDITION_FAILED"
    assert statuses(result) == ["UPDATED", "CREATED"]
    assert (await books.get(BOOK["isbn"])).data["title"] == "won"


async def test_o40_a_disabled_source_refuses_and_keeps_its_data(client, books):
    """O-40, O-41: push and delete are refused, the data stays, enabling resumes; both are idempotent."""
    await books.push([BOOK])
    for _ in range(2):
        await client.update_source("books", "default", disabled=True)
    with pytest.raises(syncline.SynclineError) as push:
        await books.push([OTHER])
    with pytest.raises(syncline.SynclineError) as delete:
        await books.delete([BOOK])
    with pytest.raises(syncline.SynclineError) as session:
        await books.open_session("stream")
    held = await contents(books)
    for _ in range(2):
        await client.update_source("books", "default", disabled=False)
    resumed = await books.push([OTHER])

    assert {push.value.reason, delete.value.reason, session.value.reason} == {"SOURCE_DISABLED"}
    assert list(held) == [BOOK["isbn"]]
    assert statuses(resumed) == ["CREATED"]


async def test_o32_a_change_of_identity_needs_rekey_and_is_one_commit(client, books):
    """O-32: refused while records are held, unless asked to re-key; then everything moves in one revision."""
    await books.push([BOOK, OTHER, {"isbn": "third", "title": "Pride and Prejudice"}])
    with pytest.raises(syncline.SynclineError) as refused:
        await client.update_dataset("books", identity=syncline.by_key("title"))
    token = (await books.sync()).token
    await client.update_dataset("books", identity=syncline.by_key("title"), rekey=True)
    page = await books.sync(token)
    held = await contents(books)

    assert refused.value.reason == "IDENTITY_IN_USE"
    assert set(held) == {BOOK["title"], OTHER["title"]}
    assert held["Pride and Prejudice"]["isbn"] == "third"  # of those that meet, the newest stays
    assert {change.revision for change in page.changes} == {2}
    assert page.checkpoint.record_count == 2


async def test_per_source_scope_keeps_key_spaces_apart(client):
    """B-40: the same key from two sources is two records; one cannot delete the other's."""
    await client.create_dataset("shared", identity=syncline.by_key("id"), scope="per_source")
    await client.create_source("shared", "a")
    await client.create_source("shared", "b")
    shared = client.dataset("shared")
    await shared.push([{"id": "1", "from": "a"}], source="a")
    await shared.push([{"id": "1", "from": "b"}], source="b")
    crossed = await shared.delete_ids(["a/1"], source="b")
    await shared.delete([{"id": "1"}], source="b")

    assert statuses(crossed) == ["NOT_FOUND"]
    assert await contents(shared) == {"a/1": {"id": "1", "from": "a"}}


async def test_shared_scope_the_last_writer_owns(client, books):
    await client.create_source("books", "feed")
    await books.push([BOOK])
    await books.push([BOOK], source="feed")
    record = await books.get(BOOK["isbn"])

    assert record.source == "feed"
    assert record.revision == 1


async def test_validate_only_changes_nothing(books):
    result = await books.push([BOOK, {"title": "no key"}], validate_only=True)

    assert [v.index for v in result.violations] == [1]
    assert await contents(books) == {}
