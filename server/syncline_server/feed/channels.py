"""The channels of everything that is followed: one for each dataset, and for each selection of it."""

import asyncio
from collections.abc import Iterator

from syncline_server.clock import Clock
from syncline_server.feed.abc import EventEncoder
from syncline_server.feed.channel import Channel
from syncline_server.feed.filtered_channel import FilteredChannel
from syncline_server.feed.filtered_hub import Hub
from syncline_server.feed.filtered_members import MemberRoom
from syncline_server.feed.frames import FrameMaker
from syncline_server.feed.pages import PageCache
from syncline_server.feed.ring import FrameRoom
from syncline_server.feed.settings import FeedSettings
from syncline_server.feed.tokens import NO_FILTER, Origin, Position
from syncline_server.filters.selection import Selection
from syncline_server.metrics import Metrics
from syncline_server.model import Appended, Dataset
from syncline_server.store.abc import Store


class _Filtered:
    """The filtered channels of one dataset."""

    __slots__ = ("channels", "frames", "hub")

    def __init__(self, hub: Hub, frames: FrameRoom) -> None:
        self.hub = hub
        self.frames = frames
        self.channels: dict[bytes, FilteredChannel] = {}


class Channels:
    """Makes channels when they are asked for, tells them what is heard, and lets go of those that nobody uses.

    A commit costs one look-up here, and one more where copies of the dataset are filtered, however many channels
    there are.
    """

    def __init__(
        self, store: Store, clock: Clock, encoder: EventEncoder, settings: FeedSettings, metrics: Metrics
    ) -> None:
        self._store = store
        self._clock = clock
        self._encoder = encoder
        self._settings = settings
        self._metrics = metrics
        self._whole: dict[int, Channel] = {}
        self._filtered: dict[int, _Filtered] = {}
        self._pages = PageCache(clock, max_bytes=settings.page_cache_bytes)
        self._members = MemberRoom(settings.filter_members)
        self._members.let_idle_go = self._let_idle_go
        metrics.page_cache_bytes.set_function(lambda: self._pages.size_bytes)
        metrics.filter_members.set_function(lambda: self._members.used)
        metrics.filtered_channels.set_function(lambda: sum(len(f.channels) for f in self._filtered.values()))

    def __iter__(self) -> Iterator[Channel]:
        yield from self._whole.values()
        for filtered in self._filtered.values():
            yield from filtered.channels.values()

    @property
    def dataset_numbers(self) -> set[int]:
        """Datasets that are followed."""
        return {*self._whole, *self._filtered}

    def follows(self, dataset_number: int) -> bool:
        """Whether a dataset is followed."""
        return dataset_number in self._whole or dataset_number in self._filtered

    @property
    def lag_revisions(self) -> int:
        """How far behind the slowest follower of any is."""
        return max((channel.lag_revisions for channel in self), default=0)

    # -- channels -----------------------------------------------------------------------------------------

    def maker(self, dataset: Dataset, selection: Selection | None = None) -> FrameMaker:
        """What encodes the frames of copies of a dataset."""
        info = self._store.info
        origin = Origin(
            store_id=info.store_id,
            history_id=info.history_id,
            incarnation=dataset.incarnation,
            filter_fingerprint=NO_FILTER if selection is None else selection.fingerprint,
        )
        return FrameMaker(self._encoder, origin, info.token_secret)

    def open(self, dataset: Dataset, selection: Selection | None = None) -> Channel:
        """The channel of a dataset, or of a selection of it; made when there is none."""
        if selection is not None:
            return self._open_filtered(dataset, selection)
        channel = self._whole.get(dataset.number)
        if channel is None:
            channel = self._whole[dataset.number] = self._new(dataset)
        return channel

    def reader(self, dataset: Dataset, selection: Selection | None = None) -> Channel:
        """A channel for one read. Of a whole dataset that nobody follows, one that is not kept: it holds nothing."""
        if selection is not None:
            return self._open_filtered(dataset, selection)
        return self._whole.get(dataset.number) or self._new(dataset)

    def _new(self, dataset: Dataset) -> Channel:
        return Channel(
            self._store, dataset.number, self.maker(dataset), self._settings, self._metrics, pages=self._pages
        )

    def _open_filtered(self, dataset: Dataset, selection: Selection) -> FilteredChannel:
        filtered = self._filtered.get(dataset.number)
        if filtered is None:
            filtered = self._filtered[dataset.number] = self._new_filtered(dataset)
        channel = filtered.channels.get(selection.fingerprint)
        if channel is None:
            channel = FilteredChannel(
                self._store,
                dataset.number,
                self.maker(dataset, selection),
                selection,
                filtered.hub,
                filtered.frames,
                self._settings,
                self._metrics,
            )
            filtered.channels[selection.fingerprint] = channel
            filtered.hub.hear(dataset.head.revision)
            filtered.hub.join(channel.members)
        return channel

    def _new_filtered(self, dataset: Dataset) -> _Filtered:
        settings = self._settings
        hub = Hub(self._store, dataset.number, self.maker(dataset), self._members, settings, self._metrics)
        frames = FrameRoom(
            max_bytes=settings.ring_bytes + settings.shared_bytes, max_frames=settings.ring_frames
        )
        return _Filtered(hub, frames)

    # -- what is heard ------------------------------------------------------------------------------------

    def take(self, appended: Appended) -> None:
        """Hear of a group of commits."""
        if channel := self._whole.get(appended.dataset_number):
            channel.take(appended)
        if filtered := self._filtered.get(appended.dataset_number):
            filtered.hub.take(appended)

    def tail(self, dataset_number: int) -> Position | None:
        """Where those stand who follow a dataset and are up to date; None: nobody is."""
        channel = self._whole.get(dataset_number)
        if channel is not None and channel.followers and channel.ring.tail is not None:
            return channel.ring.tail
        filtered = self._filtered.get(dataset_number)
        return None if filtered is None else filtered.hub.tail

    def newest_revision(self, dataset_number: int) -> int:
        """Newest revision heard of; 0: none."""
        channel, filtered = self._whole.get(dataset_number), self._filtered.get(dataset_number)
        return max(
            0 if channel is None else channel.known_revision,
            0 if filtered is None else filtered.hub.heard_revision,
        )

    def hear(self, dataset_number: int, revision: int) -> None:
        """Hear that a dataset has reached a revision."""
        if channel := self._whole.get(dataset_number):
            channel.hear(revision)
        if filtered := self._filtered.get(dataset_number):
            filtered.hub.hear(revision)

    def drop(self, dataset_number: int) -> None:
        """Forget what is kept of a dataset: it was deleted, or its records have other ids now."""
        self._pages.drop(dataset_number)
        if channel := self._whole.get(dataset_number):
            channel.drop()
        if filtered := self._filtered.get(dataset_number):
            filtered.hub.drop()
            for each in filtered.channels.values():
                each.drop()

    # -- letting go ---------------------------------------------------------------------------------------

    def let_go(self) -> None:
        """Let go of what nobody has used for a while."""
        self._pages.expire()
        left_before = self._clock.monotonic() - self._settings.linger_seconds
        for number, channel in tuple(self._whole.items()):
            if not channel.users and channel.left_at < left_before:
                del self._whole[number]
        for number, filtered in tuple(self._filtered.items()):
            for fingerprint, channel in tuple(filtered.channels.items()):
                if not channel.users and channel.left_at < left_before:
                    filtered.hub.leave(filtered.channels.pop(fingerprint).members)
            if not filtered.channels and filtered.hub.idle:
                del self._filtered[number]

    def _let_idle_go(self) -> bool:
        """Let go of the filtered channel that has not been used for longest."""
        idle = [
            (channel.left_at, number, fingerprint)
            for number, filtered in self._filtered.items()
            for fingerprint, channel in filtered.channels.items()
            if not channel.users and channel.members.entries
        ]
        if not idle:
            return False
        _, number, fingerprint = min(idle)
        filtered = self._filtered[number]
        filtered.hub.leave(filtered.channels.pop(fingerprint).members)
        return True

    async def aclose(self) -> None:
        """End the reads under way."""
        await self._pages.aclose()
        for filtered in self._filtered.values():
            await filtered.hub.aclose()
        await asyncio.gather(*(channel.aclose() for channel in self))
