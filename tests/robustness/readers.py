"""Readers that ask for what was acknowledged, and applications that look at copies which the SDK keeps."""

import asyncio
import zlib
from collections import deque
from pathlib import Path

import grpc

import syncline
from robustness.clients import CALL_SECONDS, Run, now
from robustness.history import Read, State
from robustness.model import SELECTIONS
from support.wire import Wire
from syncline.v1 import record_service_pb2 as pb

FOLLOWING = syncline.FeedOptions(
    checkpoint_seconds=0.5,
    missed_checkpoints=5,
    reconnect=syncline.RetryPolicy(attempts=None, max_seconds=0.3),
)
"""Where the server dies every second, pauses that double each time would be all that there is."""
LOOKS_SECONDS = 0.15
"""Between two looks at a copy."""


class Reader:
    """Reads records and lists, of what was acknowledged to anybody or later."""

    def __init__(self, run: Run, wire: Wire, name: str, dataset: str, keys: list[str]) -> None:
        self.run = run
        self.wire = wire
        self.name = name
        self.dataset = dataset
        self.keys = keys
        self.rng = run.chooser(name)

    async def work(self) -> None:
        """Read until the run ends."""
        while not self.run.stopping.is_set():
            try:
                await self.rng.choice([self.get, self.list])()
            except grpc.aio.AioRpcError:
                await self.run.pause(self.rng)
            await asyncio.sleep(self.rng.uniform(0, 0.05))

    async def get(self) -> None:
        """Read some records."""
        asked = tuple(self.rng.sample(self.keys, 5))
        least, begun = self._least(), now()
        request = pb.BatchGetRecordsRequest(
            dataset=f"datasets/{self.dataset}", record_ids=asked, min_revision=least
        )
        answer = await self.wire.call(self.wire.record.BatchGetRecords, request, CALL_SECONDS)
        self._note(answer, least, begun, asked=asked)

    async def list(self) -> None:
        """Read all records, in one page."""
        selection = self.rng.choice(["all", "red", "masked"])
        least, begun = self._least(), now()
        request = pb.ListRecordsRequest(
            dataset=f"datasets/{self.dataset}",
            page_size=1_000,
            min_revision=least,
            filter=SELECTIONS[selection].filter,
            read_mask={"paths": SELECTIONS[selection].fields} if SELECTIONS[selection].fields else None,
        )
        answer = await self.wire.call(self.wire.record.ListRecords, request, CALL_SECONDS)
        if not answer.next_page_token:
            self._note(answer, least, begun, selection=selection)

    def _least(self) -> int:
        return self.run.acknowledged.get(self.dataset, 0) if self.rng.random() < 0.5 else 0

    def _note(self, answer: object, least: int, begun: float, **what: object) -> None:
        self.run.history.reads.append(
            Read(
                name=self.name,
                dataset=self.dataset,
                min_revision=least,
                invoked=begun,
                returned=now(),
                revision=answer.revision,
                records={record.record_id: (record.revision, record.data) for record in answer.records},
                **what,
            )
        )


def look(
    run: Run, name: str, dataset: str, selection: str, revision: int, records: State, latest: int = 0
) -> None:
    """Note what an application sees in its copy."""
    at = now()
    run.history.reads.append(
        Read(
            name=name,
            dataset=dataset,
            selection=selection,
            invoked=at,
            returned=at,
            revision=revision,
            records=records,
            latest=latest,
            is_live=False,
        )
    )


async def follow_copy(run: Run, client: syncline.Client, name: str, dataset: str, selection: str) -> None:
    """Keep a ``syncline.Copy`` by ``changes()``; it raises CopyDiverged when it is not exact.

    Now and then the feed is dropped in the middle of a batch and a new one goes on from where that was.
    """
    rng, selected = run.chooser(name), SELECTIONS[selection]
    copy, token = syncline.Copy(), None
    heard: deque[object] = deque(maxlen=40)
    while not run.leaving.is_set():
        heard.append(f"from {_told(token)}")
        async with client.dataset(dataset).changes(
            token, options=FOLLOWING, filter=selected.filter or None, fields=selected.fields or None
        ) as feed:
            for _ in range(1 << 30 if run.is_calm else rng.choice([1, 5, 20, 100, 400])):
                event = await anext(feed)
                heard.append(f"{event!r:.90} {_told(event.token)}")
                try:
                    copy.apply(event)
                except syncline.CopyDiverged as error:
                    run.history.complaints.append(f"{name}: {error}; it had heard " + "; ".join(heard))
                    return
                if isinstance(event, syncline.Checkpoint):
                    records = {key: (copy.event(key).revision, copy.event(key).json) for key in copy}
                    look(run, name, dataset, selection, copy.revision, records)
            token = feed.token or None
        if not run.is_calm and rng.random() < 0.3:
            await asyncio.sleep(rng.uniform(0, 1.0))  # long enough for its tombstones to go
        if token is None:
            copy = syncline.Copy()  # it begins with nothing again, and so does the copy


def _told(token: bytes | None) -> str:
    """A token in a few characters."""
    return f"<{zlib.crc32(token):08x}>" if token else "<nothing>"


async def keep_replica(
    run: Run, client: syncline.Client, name: str, dataset: str, selection: str, path: object = None
) -> None:
    """Keep a replica and look at it; leave and open it again now and then. One that had to be mended is noted."""
    rng, selected = run.chooser(name), SELECTIONS[selection]
    while not run.leaving.is_set():
        async with client.dataset(dataset).replica(
            path, filter=selected.filter or None, fields=selected.fields or None
        ) as replica:
            for _ in range(1 << 30 if run.is_calm else rng.choice([2, 10, 40])):
                await asyncio.sleep(LOOKS_SECONDS)
                await _look_into(run, name, dataset, selection, replica)
                if run.leaving.is_set() or replica.repairs:
                    break


async def keep_mirror(
    run: Run, client: syncline.Client, name: str, selection: str, directory: str | Path
) -> None:
    """Keep a mirror of all datasets and look at the replicas in it; leave and open it again now and then."""
    rng, selected = run.chooser(name), SELECTIONS[selection]
    while not run.leaving.is_set():
        async with client.mirror(
            "*", directory, filter=selected.filter or None, fields=selected.fields or None
        ) as mirror:
            for _ in range(1 << 30 if run.is_calm else rng.choice([2, 10, 40])):
                await asyncio.sleep(LOOKS_SECONDS)
                await asyncio.gather(
                    *(
                        _look_into(run, f"{name}/{dataset}", dataset, selection, replica)
                        for dataset, replica in mirror.items()
                    )
                )
                run.history.complaints += [
                    f"{name}: {dataset} has stopped: {error!r}" for dataset, error in mirror.failed.items()
                ]
                if run.leaving.is_set() or mirror.failed:
                    break


async def _look_into(run: Run, name: str, dataset: str, selection: str, replica: syncline.Replica) -> None:
    if replica.is_complete:
        revision = replica.revision
        records = {put.record_id: (put.revision, put.json) for put in replica.records()}
        await asyncio.sleep(LOOKS_SECONDS)  # a file may be a little ahead of what the replica says of it
        look(run, name, dataset, selection, revision, records, replica.revision)
    run.history.complaints += [f"{name} had to be mended: {repair}" for repair in replica.repairs]
