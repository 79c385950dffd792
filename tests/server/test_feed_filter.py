"""Filtered copies over the feed, on a store in memory and on the real ones. Every checkpoint is checked by digest."""

import asyncio
import random

import pytest

from support.feed_encoder import Copy, parse
from support.feed_house import PATIENCE_SECONDS, follow, follow_to, running
from syncline_server.errors import InvalidArgument
from syncline_server.feed import filtered_first
from syncline_server.filters.selection import Row, parse_selection


@pytest.fixture
def house(feed_backend_name, tmp_path):
    return lambda **settings: running(feed_backend_name, tmp_path, **settings)


def books(*numbers, genre="a", version=0):
    """Puts of ``k<number>`` with a genre."""
    return [(f"k{number}", b'{"genre":"%s","v":%d}' % (genre.encode(), version)) for number in numbers]


def genre(name, *mask):
    return parse_selection(f'genre = "{name}"', mask)


GENRE_A = genre("a")


async def expected(home, selection):
    """What a reader sees, under a filter and mask."""
    records, _, _ = await home.store.list_records(
        home.dataset.number, after="", limit=1 << 20, max_bytes=1 << 40
    )
    rows = [Row(record.record_id, record.revision, record.update_time_us, record.data) for record in records]
    return {row.record_id: (row.revision, selection.project(row)) for row in rows if selection.matches(row)}


async def assert_equal(home, copy, selection):
    assert copy.exact and copy.verified
    assert copy.records == await expected(home, selection)


async def test_t52_g7_leave_enter_and_delete_live(house):
    async with house(page_changes=10) as home:
        await home.write([*books(*range(25)), *books(*range(25, 50), genre="b")])
        copy = Copy()
        async with home.subscribe(selection=GENRE_A) as messages:
            await follow(copy, messages)
            await assert_equal(home, copy, GENRE_A)
            assert len(copy.records) == 25
            for actions, left in (
                (books(3, genre="b"), 24),
                (books(30), 25),
                ([("k4", None)], 24),
                (books(4), 25),
                ([*books(5, genre="b"), ("k6", None), *books(31, 32)], 25),
            ):
                await follow_to(copy, messages, (await home.write(actions)).head.revision)
                await assert_equal(home, copy, GENRE_A)
                assert len(copy.records) == left


async def test_t52_deleted_left_and_made_again_behind_a_copys_back(house):
    """Conflated: only the newest version is left to be read, and the copy holds one that is older still."""
    async with house(page_changes=4) as home:
        await home.write([*books(*range(10)), *books(*range(10, 20), genre="b")])
        copies = [await home.sync(Copy(), selection=GENRE_A)]
        copies.append(await home.sync(Copy(), selection=GENRE_A, until=lambda: True))
        await home.write([(f"k{number}", None) for number in range(4)])
        await home.write(books(0, genre="b"))
        await home.write(books(1, genre="b"))
        await home.write(books(1, 2, 12, version=1))
        await home.write(books(5, 12, genre="b", version=2))
        for copy in copies:
            await home.sync(copy, selection=GENRE_A)
            await assert_equal(home, copy, GENRE_A)
            assert copy.resets == []


@pytest.mark.parametrize("narrow", [0, 1 << 40], ids=["by members", "by scan"])
async def test_cold_start_either_way_resumes_at_any_row_while_others_write(house, monkeypatch, narrow):
    """T52: what is sent by members and what is sent by scan is the same copy, also when they take turns."""
    async with house(page_changes=3, linger_seconds=0) as home:
        await home.write([*books(*range(12)), *books(*range(12, 24), genre="b")])
        await home.write(books(*range(24, 30)))
        copy, steps = Copy(), 0
        while not copy.exact:
            monkeypatch.setattr(filtered_first, "_NARROW", narrow if steps % 3 else 0)
            async with home.subscribe(selection=GENRE_A, token=copy.token) as messages:
                copy.take(await anext(messages))
            steps += 1
            if steps < 5:
                await home.write([*books(steps, genre="b"), *books(20 + steps, version=steps)])
        await assert_equal(home, copy, GENRE_A)
        assert steps > 6
        assert copy.resets == []


async def test_cold_starts_of_many_narrow_filters_cost_one_scan(house):
    async with house(page_changes=50) as home:
        await home.write([action for n in range(400) for action in books(n, genre=f"g{n % 40}")])
        selections = [genre(f"g{number}") for number in range(40)]
        home.store.reads = 0

        async def cold(selection):
            async with home.subscribe(selection=selection) as messages:
                return await follow(Copy(), messages)

        copies = await asyncio.gather(*map(cold, selections))
        assert home.store.reads < 40, "eight pages, read twice at most, not for each filter"
        for copy, selection in zip(copies, selections, strict=True):
            await assert_equal(home, copy, selection)
            assert (copy.batches, len(copy.records)) == (1, 10)


async def test_a_commit_costs_only_those_it_concerns(house):
    async with house() as home:
        await home.write([action for n in range(30) for action in books(n, genre=f"g{n}")])
        streams = [home.feed.subscribe(home.dataset, selection=genre(f"g{n}")) for n in range(30)]
        twin = home.feed.subscribe(home.dataset, selection=genre("g7"))
        copies = [await follow(Copy(), stream) for stream in [*streams, twin]]
        encoded, reads = home.encoder.calls, home.store.reads
        await home.write(books(7, genre="g7", version=1))
        frames = [await anext(stream) for stream in (streams[7], twin)]
        assert frames[0] is frames[1]
        await home.write(books(7, genre="g8", version=2))
        for number, stream in ((7, streams[7]), (8, streams[8])):
            await follow_to(copies[number], stream, 3) if number == 8 else copies[7].take(frames[0])
        copies[7].take(await anext(streams[7]))
        assert home.encoder.calls == encoded + 3, "one frame for the first commit, two for the second"
        assert home.store.reads == reads
        for number in (7, 8):
            await assert_equal(home, copies[number], genre(f"g{number}"))
        for stream in [*streams, twin]:
            await stream.aclose()


async def test_a_commit_too_large_to_carry_is_read_once_for_all(house):
    async with house(page_changes=50) as home:
        selections = [genre(f"g{n}") for n in range(20)]
        streams = [home.feed.subscribe(home.dataset, selection=selection) for selection in selections]
        copies = [await follow(Copy(), stream) for stream in streams]
        reads = home.store.reads
        appended = await home.write([action for n in range(400) for action in books(n, genre=f"g{n % 20}")])
        for copy, stream, selection in zip(copies, streams, selections, strict=True):
            await follow_to(copy, stream, appended.head.revision)
            await assert_equal(home, copy, selection)
            await stream.aclose()
        assert home.store.reads - reads < 20


async def test_t50_f1_purge_while_members_are_counted(house):
    """Deletes of records that were counted already are gone before the count comes to them: it begins again."""
    async with house(page_changes=5) as home:
        await home.write(books(*range(20)))
        purged = []

        async def purge(after):
            if after and not purged:
                purged.append(after)
                await home.write([(f"k{number}", None) for number in range(4)], announce=False)
                await home.purge()

        home.store.before_read = purge
        async with home.subscribe(selection=GENRE_A) as messages:
            copy = await follow_to(Copy(), messages, 2)
            await assert_equal(home, copy, GENRE_A)
            assert (purged, len(copy.records)) == ([5], 16)


async def test_t55_g10_a_filter_that_matches_nothing_on_a_busy_dataset(house):
    """Checkpoints come, the token moves, and it works after everything older was purged (etcd #17507)."""
    async with house(checkpoint_seconds=0.05, page_changes=5) as home:
        await home.write(books(*range(12), genre="b"))
        copy = Copy()

        async def busy():
            number = 0
            while True:
                await home.write(
                    [*books(number % 12, genre="b", version=number), (f"k{(number + 5) % 12}", None)]
                )
                number += 1
                await asyncio.sleep(0.002)

        writer = asyncio.create_task(busy())
        async with home.subscribe(selection=GENRE_A) as messages:
            await follow(copy, messages, until=lambda: len(set(copy.checkpoints)) >= 4)
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)
        assert copy.records == {}
        async with home.subscribe(selection=GENRE_A, token=copy.token) as messages:
            await follow_to(copy, messages, await home.revision())
        await home.purge()
        await home.write(books(1))
        async with home.subscribe(selection=GENRE_A, token=copy.token) as messages:
            await follow_to(copy, messages, await home.revision())
        await assert_equal(home, copy, GENRE_A)
        assert copy.resets == []


async def test_t55_a_sync_that_finds_nothing_reads_on_and_moves_the_token(house):
    async with house(page_changes=3) as home:
        await home.write(books(*range(10)))
        copy = await home.sync(Copy(), selection=GENRE_A)
        await home.write(books(*range(100, 130), genre="b"))
        before, reads = copy.batches, home.store.reads
        await home.sync(copy, selection=GENRE_A)
        await assert_equal(home, copy, GENRE_A)
        assert (copy.batches - before, copy.revision) == (1, 2)
        assert home.store.reads == reads, "the account knows that nothing concerned the copy"
        copy = await home.sync(Copy(), selection=genre("none"))
        assert copy.batches == 1, "one batch, though there are fourteen pages"


async def test_t53_a_token_of_another_filter_mask_or_dataset(house):
    async with house(page_changes=4) as home:
        await home.write([*books(*range(6)), *books(*range(6, 12), genre="b")])
        whole = await home.sync(Copy())
        filtered = await home.sync(Copy(), selection=GENRE_A)
        for selection, token in (
            (GENRE_A, whole.token),
            (genre("b"), filtered.token),
            (genre("a", "v"), filtered.token),
        ):
            copy = Copy(token=token)
            await home.sync(copy, selection=selection)
            assert copy.resets == ["FILTER_CHANGED"]
            await assert_equal(home, copy, selection)
            async with home.subscribe(selection=selection, token=token) as messages:
                streamed = await follow(Copy(), messages)
            assert (streamed.resets, streamed.records) == (["FILTER_CHANGED"], copy.records)
        copy = Copy(token=filtered.token)
        await home.sync(copy)
        assert copy.resets == ["FILTER_CHANGED"]
        await home.assert_equal(copy)
        same = parse_selection('genre="a" AND genre = "a"', [])
        await home.sync(filtered, selection=same)
        assert filtered.resets == [], "the same filter in other words"
        await home.create("others")
        copy = Copy(token=filtered.token)
        await home.sync(copy, selection=GENRE_A)
        assert (copy.resets, copy.records) == (["DATASET_REPLACED"], {})
        damaged = filtered.token[:40] + bytes([filtered.token[40] ^ 1]) + filtered.token[41:]
        with pytest.raises(InvalidArgument, match="token"):
            await home.feed.sync(home.dataset, damaged, selection=GENRE_A)


async def test_t54_checkpoints_never_overtake_data_however_slow_reads_are(house):
    """F13: at each checkpoint, count and digest are compared with the copy."""
    choose = random.Random(54)
    async with house(page_changes=3, ring_frames=4, checkpoint_seconds=0.01) as home:
        await home.write(books(*range(20)))

        async def delay(page):
            for _ in range(choose.randint(0, 20)):
                await asyncio.sleep(0)

        home.store.after_read = delay
        copies = [Copy() for _ in range(4)]

        async def stay(copy, stream):
            async with stream as messages:
                await follow(copy, messages, until=lambda: copy.exact and copy.revision >= 101)

        streams = [asyncio.create_task(stay(c, home.subscribe(selection=GENRE_A))) for c in copies]
        for number in range(100):
            await home.write(
                [
                    *books(number % 20, genre=choose.choice("ab"), version=number),
                    *books(20 + number, genre=choose.choice("ab")),
                ],
                announce=choose.random() < 0.8,
            )
            await asyncio.sleep(0)
        home.feed._channels.hear(home.dataset.number, 101)
        await asyncio.gather(*streams)
        for copy in copies:
            await assert_equal(home, copy, GENRE_A)


async def test_g7_digest_of_a_masked_copy_is_over_what_was_sent(house):
    masked = genre("a", "v")
    async with house() as home:
        await home.write([*books(1, 2), *books(3, genre="b")])
        async with home.subscribe(selection=masked) as messages:
            copy = await follow(Copy(), messages)
            assert copy.records == {"k1": (1, b'{"v":0}'), "k2": (1, b'{"v":0}')}
            await follow_to(copy, messages, (await home.write(books(2, 3, version=1))).head.revision)
            assert copy.records["k3"] == (2, b'{"v":1}')
            await assert_equal(home, copy, masked)
        whole = parse_selection("", ["v"])
        await assert_equal(home, await home.sync(Copy(), selection=whole), whole)


async def test_more_members_than_are_kept_account_of(house):
    """Checkpoints come without count and digest, the copy is exact all the same; narrow filters are not touched."""
    async with house(filter_members=10, page_changes=5, checkpoint_seconds=0.05) as home:
        await home.write([*books(*range(8)), *books(*range(8, 30), genre="b")])
        async with (
            home.subscribe(selection=GENRE_A) as few,
            home.subscribe(selection=genre("b")) as many,
        ):
            small, large = await follow(Copy(), few), await follow(Copy(), many)
            assert (small.verified, large.verified) == (True, False)
            await home.write([*books(0, genre="b"), ("k8", None), *books(9)])
            await follow_to(small, few, 3)
            await follow_to(large, many, 3)
            await assert_equal(home, small, GENRE_A)
            assert large.records == await expected(home, genre("b"))
            # A copy that outgrows it goes on without, and so does the account of all.
            await home.write(books(*range(100, 110)))
            await follow_to(small, few, 4)
            assert not small.verified
            assert small.records == await expected(home, GENRE_A)
        assert all(channel.unverified for channel in home.feed._channels)
        assert home.feed._channels._members.used == 0


async def test_accounts_that_nobody_uses_make_room_first(house):
    async with house(filter_members=10) as home:
        await home.write([*books(*range(8)), *books(*range(8, 16), genre="b")])
        async with home.subscribe(selection=GENRE_A) as messages:
            assert (await follow(Copy(), messages)).verified
        async with home.subscribe(selection=genre("b")) as messages:
            assert (await follow(Copy(), messages)).verified
            assert home.feed._channels._members.used == 8
        assert (await home.sync(Copy(), selection=GENRE_A)).verified


async def test_t62_filtered_channels_leave_nothing_behind(house):
    async with house(linger_seconds=0, poll_seconds=0.01) as home:
        await home.write(books(*range(300)))
        for _ in range(3):
            async with home.subscribe(selection=GENRE_A) as messages:
                await follow(Copy(), messages)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while home.feed._channels._filtered:
                await asyncio.sleep(0.01)
        assert home.feed._channels._members.used == 0


async def test_t51_a_dataset_that_goes_ends_its_filtered_copies(house):
    async with house(poll_seconds=0.05) as home:
        await home.write(books(1))
        async with home.subscribe(selection=GENRE_A) as messages:
            await follow(Copy(), messages)
            await home.delete()
            with pytest.raises(Exception, match="dataset"):
                await follow(Copy(), messages, until=lambda: False)


async def test_from_now_under_a_filter(house):
    async with house() as home:
        await home.write(books(1, 2))
        async with home.subscribe(selection=GENRE_A, from_now=True) as messages:
            copy = Copy(whole=False, revision=1)
            await follow(copy, messages)
            await home.write([*books(3), *books(4, genre="b")])
            await follow_to(copy, messages, 2)
            assert copy.records == {"k3": (2, b'{"genre":"a","v":0}')}


async def test_g14_min_revision_under_a_filter_it_does_not_concern(house):
    async with house() as home:
        await home.write(books(1))
        async with home.subscribe(selection=GENRE_A) as others:
            await follow(Copy(), others)

            async def wait():
                async with home.subscribe(selection=GENRE_A, min_revision=3) as messages:
                    return await follow(Copy(), messages)

            waiting = asyncio.create_task(wait())
            await home.write(books(2, genre="b"))
            await home.write(books(3, genre="b"))
            assert (await waiting).checkpoints == [3]


async def test_folded_counts_what_newer_changes_replaced(house):
    async with house(page_changes=100) as home:
        await home.write(books(*range(10)))
        for selection in (None, GENRE_A):
            copy = await home.sync(Copy(), selection=selection)
            assert copy.folded == 0, "a first copy has no before"
            revision = await home.revision()
            for version in range(5):
                await home.write(books(1, 2, version=revision + version + 1))
            await home.sync(copy, selection=selection)
            assert copy.folded == 8
            assert copy.exact


async def test_copies_stand_still_until_a_checkpoint_is_due(house):
    async with house(checkpoint_seconds=0.2) as home:
        await home.write(books(1))
        async with home.subscribe(selection=GENRE_A) as messages:
            copy = await follow(Copy(), messages)
            for number in range(5):
                await home.write(books(2, genre="b", version=number))
            message = await anext(messages)
            assert [event["event"] for event in parse(message)] == ["changes", "checkpoint"]
            copy.take(message)
            assert (copy.revision, parse(message)[0]["record_ids"]) == (6, [])
            await follow_to(copy, messages, (await home.write(books(3))).head.revision)
            await assert_equal(home, copy, GENRE_A)
