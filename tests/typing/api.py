"""Never run: checked by mypy from the outside, as a user's program would be (test_public_names.py)."""

import datetime
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict, assert_type

import msgspec

import syncline


@dataclass
class Book:
    isbn: str
    title: str


class Struct(msgspec.Struct):
    isbn: str


class Typed(TypedDict):
    isbn: str


async def catalog() -> None:
    async with syncline.connect("127.0.0.1:7420", key=None) as client:
        assert_type(client, syncline.Client)
        info = await client.create_dataset(
            "books", identity=syncline.by_key("isbn"), schema={"type": "object"}
        )
        assert_type(info, syncline.DatasetInfo)
        assert_type(info.commit_time, datetime.datetime | None)
        await client.create_source("books", "feed")
        key = await client.create_key("push", dataset="books", source="feed")
        assert_type(key.secret, str | None)
        assert_type(await client.list_keys(), list[syncline.KeyInfo])
        assert_type(await client.list_datasets(), list[syncline.DatasetInfo])
        await client.create_key("owner")  # type: ignore[arg-type]
        await client.create_dataset("books", scope="private")  # type: ignore[arg-type]

        assert_type(client.dataset("books"), syncline.Dataset[Mapping[str, Any]])
        assert_type(client.dataset("books", None), syncline.Dataset[Mapping[str, Any]])
        assert_type(client.dataset("books", model=Book), syncline.Dataset[Book])
        assert_type(client.dataset("books", Struct), syncline.Dataset[Struct])
        assert_type(client.dataset("books", Typed), syncline.Dataset[Typed])


async def plain(books: syncline.Dataset[Mapping[str, Any]]) -> None:
    await books.push([{"isbn": "1"}, b"{}", syncline.IfAbsent({"isbn": "2"})])
    record = await books.get("1")
    assert_type(record.data, Mapping[str, Any])


async def writes(books: syncline.Dataset[Book], book: Book) -> None:
    result = await books.push(
        [book, b"{}", syncline.IfRevision(book, 17), syncline.IfAbsent(book)], source="feed", partial=True
    )
    assert_type(result, syncline.PushResult)
    assert_type(result.results[0].status, syncline.RecordStatus)
    assert_type(result.results[0].record_id, str)
    await books.push([5])  # type: ignore[list-item]
    await books.delete([book, {"isbn": "1"}])
    await books.delete_ids(["1"])

    def rows() -> Iterator[Book]:
        yield book

    async def later() -> AsyncIterator[Book]:
        yield book

    assert_type(await books.load(rows(), progress=print), syncline.LoadResult)
    await books.load(later(), batch=100, in_flight=2)

    async with books.session("replace", source="feed", allow_mass_delete=True) as session:
        assert_type(session, syncline.Session[Book])
        assert_type(await session.upsert(rows()), syncline.PushResult)
        await session.upsert(later())
        await session.upsert([book])
        await session.delete([{"isbn": "1"}])
        await session.delete_ids(["1"])
    assert_type(session.result, syncline.SessionResult | None)
    opened = await books.open_session(
        "accrue", idle_timeout=datetime.timedelta(minutes=5), on_conflict="abort"
    )
    assert_type(await opened.close(commit=False), syncline.SessionResult)
    books.session("replac")  # type: ignore[arg-type]
    books.session("replace", on_conflict="keep")  # type: ignore[arg-type]


async def reads(books: syncline.Dataset[Book]) -> None:
    record = await books.get("1", min_revision=3)
    assert_type(record, syncline.Record[Book])
    assert_type(record.data, Book)
    async for each in books.records():
        assert_type(each.data.title, str)
    assert_type(await books.get_many(["1"]), dict[str, syncline.Record[Book]])

    page = await books.sync(token=None)
    assert_type(page.token, bytes)
    assert_type(page.checkpoint, syncline.Checkpoint | None)
    for change in page.changes:
        assert_type(change, syncline.Put[Book] | syncline.Delete | syncline.Remove)

    async for event in books.changes(token=None):
        match event:
            case syncline.Put():
                assert_type(event.data, Book)
            case syncline.Delete() | syncline.Remove():
                assert_type(event.record_id, str)
            case syncline.Checkpoint():
                assert_type(event.digest, bytes)
            case syncline.Reset():
                assert_type(event.reason, syncline.ResetReason)
        assert_type(event.token, bytes)

    copy: syncline.Copy[Book] = syncline.Copy()
    async with books.changes(b"token", options=syncline.FeedOptions(checkpoint_seconds=1)) as feed:
        async for part in feed.batches():
            copy.apply(part)
            if isinstance(part, syncline.ChangeBatch):
                assert_type(part.record_ids, list[str])
    assert_type(copy["1"], Book)


async def selections(books: syncline.Dataset[Book]) -> None:
    async for each in books.records(filter="pages > 100", fields=["title"]):
        assert_type(each, syncline.Record[Book])
    page = await books.sync(filter="pages > 100", fields=("title",), all=True)
    assert_type(page, syncline.SyncPage[Book])
    assert_type(books.changes(filter="pages > 100"), syncline.ChangeFeed[Book])
    books.changes(filter=100)  # type: ignore[arg-type]


async def replicas(books: syncline.Dataset[Book]) -> None:
    async with books.replica(
        "books.db", filter="pages > 100", fields=["title"], replica_id="kiosk"
    ) as replica:
        assert_type(replica, syncline.Replica[Book])
        await replica.ready(timeout_seconds=5)
        assert_type(replica["1"], Book)
        assert_type(replica.get("1"), Book | None)
        assert_type(replica.get("1", "no such book"), Book | str)
        assert_type("1" in replica, bool)
        assert_type(len(replica), int)
        assert_type(list(replica), list[str])
        assert_type(dict(replica.items()), dict[str, Book])
        assert_type(list(replica.values()), list[Book])
        assert_type(replica.where(lambda book: book.title == "Zen"), list[Book])
        assert_type(replica.record("1"), syncline.Put[Book])
        assert_type(list(replica.records()), list[syncline.Put[Book]])
        replica.where(lambda book: book.author)  # type: ignore[attr-defined]

        await replica.wait_for(7, timeout_seconds=5)
        await replica.fresh(max_age=datetime.timedelta(seconds=5))
        await replica.fresh(5)  # type: ignore[arg-type]
        assert_type(replica.revision, int)
        assert_type(replica.digest, bytes)
        assert_type(replica.staleness, datetime.timedelta | None)
        assert_type(replica.state, syncline.ReplicaState)
        assert_type(replica.is_verified, bool)
        assert_type(replica.repairs, list[syncline.Repair])
        assert_type(await replica.verify(), bool)
        assert_type(await books.verify_replica("books.db"), syncline.ReplicaProof)

        async for change in replica.changes():
            assert_type(change, syncline.Put[Book] | syncline.Delete | syncline.Remove)
        forget = replica.on_change(lambda change: print(change.record_id))
        forget()

        async def tell(change: syncline.Change[Book]) -> None:
            if isinstance(change, syncline.Put):
                assert_type(change.data, Book)

        replica.on_change(tell)
        replica.on_change(print, 1)  # type: ignore[call-arg]

    def report(error: Exception, change: syncline.Change[Book]) -> None:
        print(error, change.revision)

    assert_type(books.replica(on_error=report), syncline.Replica[Book])
    books.replica(on_error=lambda: None)  # type: ignore[misc, arg-type]


async def mirrors(client: syncline.Client) -> None:
    async with client.mirror("library-", "copies/", filter="year > 1900", replica_id="kiosk") as mirror:
        assert_type(mirror, syncline.Mirror)
        await mirror.ready()
        assert_type(mirror["library-books"], syncline.Replica[Mapping[str, Any]])
        assert_type(list(mirror), list[str])
        assert_type(mirror.gone, frozenset[str])
        assert_type(mirror.failed, Mapping[str, BaseException])
        assert_type(mirror.staleness, datetime.timedelta | None)
    assert_type(await client.heads("library-"), list[syncline.DatasetHead])
    client.mirror("library-")  # type: ignore[call-arg]


async def producers(client: syncline.Client, books: syncline.Dataset[Book], book: Book) -> None:
    def refused(reading: syncline.RefusedReading) -> None:
        assert_type(reading.violations, tuple[syncline.Violation, ...])

    async with books.producer(
        "shelf-17", source="roof", spool="shelf.db", on_full="drop_oldest", on_refused=refused
    ) as producer:
        assert_type(producer, syncline.Producer[Book])
        producer.send(book)
        await producer.send(b"{}")  # waits while there is no room
        producer.send(5)  # type: ignore[arg-type]
        await producer.saved()
        await producer.flush()
        assert_type(producer.stats, syncline.ProducerStats)
        assert_type(producer.stats.durable, int)
    books.producer("shelf-17", on_full="block")  # type: ignore[arg-type]

    for info in await client.producers("books", "roof"):
        assert_type(info, syncline.ProducerInfo)
    async with client.watch_producers("books") as watch:
        async for news in watch:
            assert_type(news, syncline.ProducerInfo | syncline.ProducerForgotten)


async def uptake(books: syncline.Dataset[Book], book: Book) -> None:
    result = await books.push([book], wait_uptake=0.95, timeout=60)
    assert_type(result.uptake, syncline.Uptake | None)
    known = await books.uptake(result.revision)
    assert_type(known.ratio, float)
    assert_type(known.replicas, tuple[syncline.ReplicaUptake, ...])


async def errors(books: syncline.Dataset[Book]) -> None:
    try:
        await books.push([])
    except syncline.InvalidRecords as error:
        assert_type(error.violations, tuple[syncline.Violation, ...])
        assert_type(error.retry_after_seconds, float | None)
        assert_type(error.metadata, Mapping[str, str])
    except syncline.Rejected as error:
        assert_type(error.reason, str)
    except syncline.OutcomeUnknown:
        pass
