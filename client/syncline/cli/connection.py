"""From the shared options and the environment to a client."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import syncline
from syncline.cli.exits import CommandError, ExitCode
from syncline.cli.failures import in_options
from syncline.cli.options import DEFAULT_SERVER, Options

if TYPE_CHECKING:
    from syncline import Client, Tls

_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"", "0", "false", "no", "off"})


@asynccontextmanager
async def connect(options: Options) -> "AsyncIterator[Client]":
    """An open client. Raises CommandError for what cannot be an address, and where a key would leak."""
    server = options.server or os.environ.get("SYNCLINE_SERVER") or DEFAULT_SERVER
    try:
        # The key stays None where it was not given: the SDK looks in the environment and the data directory.
        client = syncline.connect(
            server,
            key=options.key,
            tls=_tls(options),
            insecure=_flag("SYNCLINE_INSECURE", options.insecure),
        )
    except ValueError as error:
        raise CommandError(in_options(str(error)), code=ExitCode.USAGE) from None
    async with client:
        yield client


def _tls(options: Options) -> "Tls | bool | None":
    ca = _file("SYNCLINE_CA", options.ca)
    cert = _file("SYNCLINE_CERT", options.cert)
    cert_key = _file("SYNCLINE_CERT_KEY", options.cert_key)
    if (cert is None) != (cert_key is None):
        raise CommandError("--cert and --cert-key go together", code=ExitCode.USAGE)
    if ca is not None or cert is not None:
        return syncline.Tls(ca=ca, certificate=cert, private_key=cert_key)
    return True if _flag("SYNCLINE_TLS", options.tls) else None


def _file(variable: str, given: Path | None) -> Path | None:
    named = os.environ.get(variable)
    path = given or (Path(named) if named else None)
    if path is not None and not path.is_file():
        raise CommandError(f"{path} is not there, or no file", code=ExitCode.USAGE)
    return path


def _flag(variable: str, given: bool | None) -> bool:
    if given is not None:
        return given
    text = os.environ.get(variable, "").strip().lower()
    if text not in _TRUE | _FALSE:
        raise CommandError(f"{variable} is {text!r}; it is 1 or 0", code=ExitCode.USAGE)
    return text in _TRUE
