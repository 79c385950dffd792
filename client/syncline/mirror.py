"""``Client.mirror``: file replicas of all datasets whose ids begin with a prefix, on one stream."""

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, aclosing
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from syncline._call import LOG
from syncline.errors import NotFound, OutcomeUnknown, ReplicaStopped, StaleData, SynclineError
from syncline.names import ID_PATTERN

if TYPE_CHECKING:
    from syncline.client import Client
    from syncline.replica.replica import Replica

SUFFIX: Final = ".db"

_AT_ONCE: Final = 4
"""Files that are opened at the same time; each may be proven from its first record to its last."""
_LOOK_AGAIN_SECONDS: Final = 0.5
_NEVER: Final = 1 << 62
"""No dataset gets to this revision."""


class Mirror(Mapping[str, "Replica[Mapping[str, Any]]"]):
    """Replicas by dataset, each in ``DIRECTORY/DATASET.db``; ``Client.mirror`` makes it, ``async with`` opens it.

    Files that are there can be read at once, also while no server answers. A dataset that is created appears. One
    that is deleted disappears from the mirror: its file stays as it was, and ``gone`` names it; if a dataset of that
    name is created again, the file becomes its copy. A replica that stops for another reason stays, can be read, and
    is named in ``failed``; the others go on.
    """

    def __init__(
        self,
        client: "Client",
        prefix: str,
        directory: Path,
        *,
        filter: str | None,  # noqa: A002 - the word for it
        fields: Iterable[str] | None,
        replica_id: str | None,
    ) -> None:
        self._client = client
        self._prefix = prefix
        self._directory = directory
        self._filter = filter
        self._fields = None if fields is None else list(fields)
        self._replica_id = replica_id
        self._replicas: dict[str, Replica[Mapping[str, Any]]] = {}
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._seen: dict[str, int] = {}  # how often a dataset was seen
        self._gone: set[str] = set()
        self._failed: dict[str, BaseException] = {}
        self._opening = asyncio.Semaphore(_AT_ONCE)
        self._moved = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._error: SynclineError | None = None

    def __repr__(self) -> str:
        return f"<mirror of {self._prefix}* in {self._directory}, {len(self)} datasets>"

    # -- what it holds --------------------------------------------------------------------------------------

    def __getitem__(self, dataset: str) -> "Replica[Mapping[str, Any]]":
        return self._replicas[dataset]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._replicas))

    def __len__(self) -> int:
        return len(self._replicas)

    @property
    def gone(self) -> frozenset[str]:
        """Datasets that were deleted on the server, or that the key may not read any more; their files stay."""
        return frozenset(self._gone)

    @property
    def failed(self) -> Mapping[str, BaseException]:
        """Why replicas have stopped, or could not be opened."""
        return dict(self._failed)

    @property
    def staleness(self) -> timedelta | None:
        """That of the replica that is furthest behind; None where that is not known of one, or there is none."""
        ages = [replica.staleness for replica in self._replicas.values()]
        known = [age for age in ages if age is not None]
        return max(known) if known and len(known) == len(ages) else None

    async def ready(self, *, timeout_seconds: float | None = None) -> None:
        """Wait until all datasets that are there now were brought up to date once.

        Raises StaleData when that takes longer, what ended the mirror (PermissionDenied, …), and what stopped or
        kept from being opened one of them: ReplicaStopped, ReplicaUnusable.
        """
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._wait_until_ready()
        except TimeoutError:
            if timeout_seconds is None:
                raise
            raise StaleData(
                f"the mirror of {self._prefix}* was not brought up to date in {timeout_seconds:g} s"
            ) from None

    async def _wait_until_ready(self) -> None:
        while True:
            names = await self._names()
            missing = [name for name in names if name not in self._replicas]
            for name in names:
                if name in self._replicas:
                    await self._replicas[name].ready()
            self._check(names)
            if not missing:
                return
            moved = self._moved
            try:
                async with asyncio.timeout(_LOOK_AGAIN_SECONDS):
                    await moved.wait()
            except TimeoutError:
                pass

    async def _names(self) -> list[str]:
        """The datasets that are there, as soon as a server answers."""
        while True:
            self._check(())
            try:
                return [head.dataset for head in await self._client.heads(self._prefix)]
            except OutcomeUnknown:
                await asyncio.sleep(_LOOK_AGAIN_SECONDS)

    def _check(self, names: Iterable[str]) -> None:
        if self._task is None:
            raise RuntimeError(
                "the mirror is not open: use it inside `async with client.mirror(…) as mirror:`"
            )
        if self._error is not None:
            raise self._error
        for name in names:
            if (error := self._failed.get(name)) is not None:
                raise error

    # -- its life -------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._task is not None:
            raise RuntimeError("a mirror is opened once; client.mirror() makes another one")
        self._client.connection  # noqa: B018 - raises when the client is not open
        self._directory.mkdir(parents=True, exist_ok=True)
        self._task = asyncio.create_task(self._follow(), name=f"mirror of {self._prefix}*")
        try:
            for dataset in self._on_disk():
                self._keep(dataset)
            while self._keepers.keys() - self._replicas.keys() - self._failed.keys():
                await self._moved.wait()
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        await self._end()
        if kind is None and self._error is not None:
            raise self._error

    async def _end(self) -> None:
        assert self._task is not None
        tasks = [self._task, *self._keepers.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _on_disk(self) -> list[str]:
        names = (path.name.removesuffix(SUFFIX) for path in self._directory.glob(f"{self._prefix}*{SUFFIX}"))
        return sorted(name for name in names if ID_PATTERN.fullmatch(name))

    async def _follow(self) -> None:
        """Keep replicas of the datasets that are there."""
        try:
            async with aclosing(self._client.connection.updates.datasets(self._prefix)) as datasets:
                async for sighting in datasets:
                    if sighting.is_there:
                        self._seen[sighting.dataset] = self._seen.get(sighting.dataset, 0) + 1
                        self._keep(sighting.dataset)
                    else:
                        await self._let_go(sighting.dataset)
        except SynclineError as error:
            LOG.error("mirror of %s*: no dataset can be found any more: %s", self._prefix, error.message)
            self._error = error
            self._notify()

    def _keep(self, dataset: str) -> None:
        keeper = self._keepers.get(dataset)
        if keeper is None or keeper.done():
            self._gone.discard(dataset)
            self._failed.pop(dataset, None)
            self._keepers[dataset] = asyncio.create_task(
                self._keep_replica(dataset), name=f"mirror of {dataset}"
            )

    async def _let_go(self, dataset: str) -> None:
        """The dataset is gone."""
        keeper = self._keepers.pop(dataset, None)
        if keeper is not None:
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
            self._note_gone(dataset)

    async def _keep_replica(self, dataset: str) -> None:
        """One replica, from its opening until its dataset is gone."""
        seen = self._seen.get(dataset, 0)
        replica = self._client.dataset(dataset).replica(
            self._directory / f"{dataset}{SUFFIX}",
            filter=self._filter,
            fields=self._fields,
            replica_id=self._replica_id,
        )
        async with AsyncExitStack() as stack:
            try:
                async with self._opening:
                    await stack.enter_async_context(replica)
            except (SynclineError, OSError) as error:
                self._note_failed(dataset, error)
                return
            self._replicas[dataset] = replica
            stack.callback(self._replicas.pop, dataset, None)
            self._notify()
            await self._until_gone(dataset, replica)
        del self._keepers[dataset]
        self._note_gone(dataset)
        if self._seen.get(dataset, 0) > seen:
            self._keep(dataset)  # perhaps it was created again meanwhile

    async def _until_gone(self, dataset: str, replica: "Replica[Mapping[str, Any]]") -> None:
        """Wait until the replica stops because its dataset is gone."""
        try:
            await replica.wait_for(_NEVER)
        except ReplicaStopped as error:
            if isinstance(error.__cause__, NotFound):
                return
            self._note_failed(dataset, error)
        await asyncio.Event().wait()

    def _note_gone(self, dataset: str) -> None:
        LOG.warning("mirror of %s*: dataset %s is gone; its file stays", self._prefix, dataset)
        self._gone.add(dataset)
        self._failed.pop(dataset, None)
        self._notify()

    def _note_failed(self, dataset: str, error: BaseException) -> None:
        LOG.error("mirror of %s*: %s has stopped: %s", self._prefix, dataset, error)
        self._failed[dataset] = error
        self._notify()

    def _notify(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()


def prefix_of(pattern: str) -> str:
    """The prefix in ``prefix*``. Raises ValueError for anything else."""
    prefix, star, rest = pattern.partition("*")
    if not star or rest or not (not prefix or ID_PATTERN.fullmatch(prefix.rstrip("._-") or prefix)):
        raise ValueError(
            f"{pattern!r}: a mirror is of a prefix and a star, as in 'sensors-*', or of all: '*'"
        )
    return prefix
