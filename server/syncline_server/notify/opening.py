"""The notifier that goes with a store."""

import importlib
from typing import cast

from syncline_server.metrics import Metrics
from syncline_server.notify.abc import Notifier
from syncline_server.notify.local import LocalNotifier


def make_notifier(address: str, node_id: str, metrics: Metrics) -> Notifier:
    """For the PostgreSQL database that ``address`` names; when that is empty, inside this process."""
    if not address:
        return LocalNotifier()
    postgres = importlib.import_module("syncline_server.notify.postgres")
    return cast("Notifier", postgres.PostgresNotifier(address, node_id, metrics))
