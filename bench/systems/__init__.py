"""The systems under comparison, each used as its own users use it."""

from bench.systems.base import System, Watched


def all_systems() -> dict[str, System]:
    """Those that have clients and subscribers, by name."""
    from bench.systems.etcd import Etcd
    from bench.systems.nats import Nats
    from bench.systems.syncline import Syncline

    return {system.name: system for system in (Syncline(), Etcd(), Nats())}


def followed_systems() -> dict[str, Watched]:
    """All ways of subscribing, by name."""
    from bench.systems.echo import BareStreams
    from bench.systems.stubs import SynclineFeed

    followed: tuple[Watched, ...] = (*all_systems().values(), SynclineFeed(), BareStreams())
    return {system.name: system for system in followed}
