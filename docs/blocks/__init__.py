"""What is generated, by the name of its block."""

from collections.abc import Callable, Mapping
from pathlib import Path

from blocks import commands, errors, figures, guarantees, operation, protobuf, sdk, settings

BLOCKS: Mapping[str, Callable[[Path], str | None]] = {
    "settings": settings.table,
    "commands-client": commands.client,
    "commands-server": commands.server,
    "exit-codes": commands.exit_codes,
    "reasons": errors.reasons,
    "exceptions": errors.exceptions,
    "guarantees": guarantees.table,
    "metrics": operation.metrics,
    "log-events": operation.log_events,
    "failpoints": operation.failpoints,
    "protobuf": protobuf.reference,
    "sdk": sdk.reference,
    "figures": figures.table,
    "requirements": figures.requirements,
}

UNCHECKED = {"figures", "requirements"}
