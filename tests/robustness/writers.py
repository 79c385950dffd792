"""Writers: pushes, deletes, conditions, repeats, sessions of every mode, and sessions that come too late."""

import random
from collections.abc import Sequence
from typing import Any

from robustness.clients import CALL_SECONDS, Run, attempts, now
from robustness.history import Opening, Operation, canonical
from support.wire import Wire
from syncline.names import new_request_id
from syncline.v1 import push_service_pb2 as push_pb
from syncline.v1 import record_pb2, session_pb2
from syncline.v1 import session_service_pb2 as session_pb

COLORS = ("red", "green", "blue")
CHANGED = {
    record_pb2.RECORD_STATUS_CREATED,
    record_pb2.RECORD_STATUS_UPDATED,
    record_pb2.RECORD_STATUS_DELETED,
}
ATTEMPTS = 40
"""Some six seconds: longer than the server is ever away."""


def record(rng: random.Random, key: str, number: int) -> bytes:
    """A record that tells which operation wrote it."""
    value = {"id": key, "op": number, "color": rng.choice(COLORS), "size": rng.randrange(100)}
    if rng.random() < 0.3:
        value["pad"] = "x" * rng.randrange(200)
    return canonical(value)


class Writer:
    """One writer of one dataset."""

    def __init__(
        self, run: Run, wire: Wire, name: str, dataset: str, keys: Sequence[str], *, source: str = "default"
    ) -> None:
        self.run = run
        self.wire = wire
        self.dataset = dataset
        self.source = source
        self.keys = keys
        self.rng = run.chooser(name)

    @property
    def path(self) -> str:
        """Resource name of the source."""
        return f"datasets/{self.dataset}/sources/{self.source}"

    async def work(self) -> None:
        """Write until told to stop."""
        while not self.run.stopping.is_set():
            await self.rng.choices([self.push, self.delete, self.create], [6, 2, 1])[0]()

    async def push(self, keys: Sequence[str] = ()) -> Operation:
        """Push a few keys."""
        chosen = keys or self.rng.sample(self.keys, self.rng.randint(1, min(6, len(self.keys))))
        return await self._push(chosen, [])

    async def create(self) -> Operation:
        """Push a key on condition that it is not there."""
        condition = record_pb2.Condition(index=0, if_absent=True)
        return await self._push([self.rng.choice(self.keys)], [condition])

    async def delete(self) -> Operation:
        """Delete a few keys, there or not."""
        keys = tuple(self.rng.sample(self.keys, self.rng.randint(1, min(4, len(self.keys)))))
        request = push_pb.DeleteByIdsRequest(source=self.path, record_ids=keys, request_id=new_request_id())
        operation = self.run.history.invoke(
            "delete", self.dataset, deletes=keys, request_id=request.request_id, source=self.source
        )
        await self.send(operation, self.wire.push.DeleteByIds, request)
        return operation

    async def _push(self, keys: Sequence[str], conditions: list[record_pb2.Condition]) -> Operation:
        number = self.run.history.next_number()
        puts = {key: record(self.rng, key, number) for key in keys}
        request = push_pb.PushRequest(
            source=self.path,
            records=list(puts.values()),
            conditions=conditions,
            request_id=new_request_id(),
        )
        operation = self.run.history.invoke(
            "push",
            self.dataset,
            number=number,
            puts=puts,
            request_id=request.request_id,
            source=self.source,
        )
        await self.send(operation, self.wire.push.Push, request)
        return operation

    async def send(self, operation: Operation, method: Any, request: Any, *, count: int = ATTEMPTS) -> Any:
        """Send a write until it is answered, now and then once more, and note what came of it."""
        for _ in range(2 if self.rng.random() < 0.1 else 1):
            answer, refused, is_final = await attempts(
                self.run, self.rng, lambda: self.wire.call(method, request, CALL_SECONDS), count=count
            )
            if answer is None:
                if not operation.answers:
                    assert refused is not None
                    operation.code = refused.reason or refused.code
                    operation.outcome = "rejected" if is_final else "unknown"
                break
            operation.answers.append(answer.revision)
            if operation.outcome != "ok":
                operation.returned = now()
                operation.revision = answer.revision
                operation.changed = _changed(answer)
                operation.outcome = "ok"
                self.run.note(self.dataset, answer.revision)
        return answer


def _changed(answer: Any) -> bool:
    if isinstance(answer, session_pb.CloseSessionResponse):
        return answer.created + answer.updated + answer.deleted > 0
    return not CHANGED.isdisjoint(answer.statuses)


class SessionWriter(Writer):
    """Works by sessions of a source of its own: commits, rollbacks, sessions left open, and late closes.

    With ``replaces`` also by replace sessions; then it keeps to ids of its own, so that it is known what they delete.
    """

    def __init__(self, *args: Any, replaces: bool = False, **how: Any) -> None:
        super().__init__(*args, **how)
        self.sessions = 0
        self.owner = f"{self.dataset}/{self.source}"
        self.scope = f"{self.source}:" if replaces else ""
        self.modes = (
            ["REPLACE", "REPLACE", "ACCRUE", "STREAM"] if replaces else ["ACCRUE", "ACCRUE", "STREAM"]
        )
        self.keys = [self.scope + key for key in self.keys]

    async def work(self) -> None:
        """One session after another until told to stop."""
        while not self.run.stopping.is_set():
            mode = self.rng.choice(self.modes)
            if mode == "STREAM":
                await self.stream()
            else:
                await self.session(mode, late=self.rng.random() < 0.2, commit=self.rng.random() < 0.8)
        await self.open("STREAM")  # which rolls back what may be open still, and stages nothing itself

    async def open(self, mode: str) -> str:
        """Open a session, which fences the one before; empty: it could not be opened."""
        begun = now()
        request = session_pb.OpenSessionRequest(
            source=self.path,
            mode=session_pb2.SessionMode.Value(f"SESSION_MODE_{mode}"),
            allow_mass_delete=True,
            request_id=new_request_id(),
        )
        answer, _, _ = await attempts(
            self.run,
            self.rng,
            lambda: self.wire.call(self.wire.session.OpenSession, request, CALL_SECONDS),
            count=ATTEMPTS,
        )
        if answer is None:
            return ""
        self.sessions += 1
        self.run.history.openings.append(
            Opening(owner=self.owner, epoch=self.sessions, invoked=begun, returned=now())
        )
        return answer.session.session_id

    async def session(self, mode: str, *, late: bool = False, commit: bool = True) -> Operation | None:
        """Upsert in three calls, and close. ``late``: after another session was opened, which must be refused."""
        session_id = await self.open(mode)
        if not session_id:
            return None
        epoch = self.sessions
        number = self.run.history.next_number()
        keys = self.rng.sample(self.keys, 6)
        puts = {key: record(self.rng, key, number) for key in keys}
        rows = list(puts.values())
        for sequence, start in enumerate(range(0, 6, 2), 1):
            if not await self._stage(session_id, sequence, rows[start : start + 2]):
                return None
        if late:
            newer = await self.open(mode)
            number_of_newer = self.run.history.next_number()
            if not newer or not await self._stage(newer, 1, [record(self.rng, keys[0], number_of_newer)]):
                return None
        request = session_pb.CloseSessionRequest(
            source=self.path, session_id=session_id, commit=commit, calls=3, request_id=new_request_id()
        )
        if not commit:
            puts = {}
        operation = self.run.history.invoke(
            "replace" if mode == "REPLACE" and commit else "session",
            self.dataset,
            number=number,
            puts=puts,
            scope=self.scope,
            source=self.source,
            request_id=request.request_id,
            owner=self.owner,
            epoch=epoch,
        )
        await self.send(operation, self.wire.session.CloseSession, request)
        return operation

    async def stream(self) -> None:
        """A stream session: each call is a commit."""
        session_id = await self.open("STREAM")
        for sequence in range(1, self.rng.randint(2, 5)):
            if not session_id:
                return
            number = self.run.history.next_number()
            keys = self.rng.sample(self.keys, 2)
            puts = {key: record(self.rng, key, number) for key in keys}
            request = self._write(session_id, sequence, list(puts.values()))
            operation = self.run.history.invoke(
                "push",
                self.dataset,
                number=number,
                puts=puts,
                source=self.source,
                request_id=f"{session_id}/{sequence}",  # by which the store remembers it
                owner=self.owner,
                epoch=self.sessions,
            )
            await self.send(operation, self.wire.session.WriteSession, request)
            if operation.outcome != "ok":
                return

    def _write(self, session_id: str, sequence: int, rows: list[bytes]) -> session_pb.WriteSessionRequest:
        return session_pb.WriteSessionRequest(
            source=self.path,
            session_id=session_id,
            sequence=sequence,
            action=session_pb.SessionAction(upsert=session_pb.UpsertAction(records=rows)),
        )

    async def _stage(self, session_id: str, sequence: int, rows: list[bytes]) -> bool:
        request = self._write(session_id, sequence, rows)
        answer, _, _ = await attempts(
            self.run,
            self.rng,
            lambda: self.wire.call(self.wire.session.WriteSession, request, CALL_SECONDS),
            count=ATTEMPTS,
        )
        return answer is not None
