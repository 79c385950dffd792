"""The options that every command shares, before or after the command's name."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Final, get_type_hints

import typer

DEFAULT_SERVER: Final = "127.0.0.1:7420"
_PANEL: Final = "Shared options, before or after the command"


def _option(name: str, text: str, metavar: str | None = None) -> Any:
    return typer.Option(name, metavar=metavar, help=text, rich_help_panel=_PANEL, show_default=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The shared options; None where one was not given. ``connection`` adds the environment."""

    server: Annotated[
        str | None,
        _option(
            "--server",
            "The server; of one store several may be named, between commas. "
            f"Environment: SYNCLINE_SERVER. Default: {DEFAULT_SERVER}.",
            "HOST:PORT",
        ),
    ] = None
    key: Annotated[
        str | None,
        _option(
            "--key",
            "The key to use. Environment: SYNCLINE_KEY, which other users of the machine cannot see. "
            "Default for a server on this machine: the admin key in SYNCLINE_DATA or ./syncline-data.",
            "SECRET",
        ),
    ] = None
    tls: Annotated[
        bool | None, _option("--tls", "Use TLS, with the system's authorities. Environment: SYNCLINE_TLS=1.")
    ] = None
    ca: Annotated[
        Path | None,
        _option("--ca", "Use TLS, with the authorities in this PEM file. Environment: SYNCLINE_CA.", "FILE"),
    ] = None
    cert: Annotated[
        Path | None,
        _option("--cert", "Client certificate for mutual TLS (PEM). Environment: SYNCLINE_CERT.", "FILE"),
    ] = None
    cert_key: Annotated[
        Path | None,
        _option("--cert-key", "Its private key (PEM). Environment: SYNCLINE_CERT_KEY.", "FILE"),
    ] = None
    insecure: Annotated[
        bool | None,
        _option("--insecure", "Allow plain text to another machine. Environment: SYNCLINE_INSECURE=1."),
    ] = None
    json: Annotated[bool | None, _option("--json", "Output for programs: one JSON value a line.")] = None
    no_color: Annotated[bool | None, _option("--no-color", "No colours. Environment: NO_COLOR.")] = None
    debug: Annotated[bool | None, _option("--debug", "Show the traceback of an error.")] = None

    def over(self, earlier: "Options") -> "Options":
        """These options, and the earlier ones where these are not given."""
        given = {
            entry.name: value for entry in fields(self) if (value := getattr(self, entry.name)) is not None
        }
        return replace(earlier, **given)


_HINTS: Final[Mapping[str, Any]] = get_type_hints(Options, include_extras=True)


def with_options(function: Callable[..., Any], wrapper: Callable[..., Any], *, leave_out: int = 0) -> None:
    """Give ``wrapper`` the parameters of ``function`` (without the first few), a context and the shared options.

    Typer reads a command's parameters from its signature.
    """
    own = list(inspect.signature(function).parameters.values())[leave_out:]
    hints = get_type_hints(function, include_extras=True)
    parameters = [
        inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
        *(
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[parameter.name])
            for parameter in own
        ),
        *(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint)
            for name, hint in _HINTS.items()
        ),
    ]
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}


def take_options(context: typer.Context, values: dict[str, Any]) -> Options:
    """Take the shared options out of a command's arguments, over those given before its name."""
    given = Options(**{name: values.pop(name) for name in _HINTS})
    earlier = context.obj if isinstance(context.obj, Options) else Options()
    return given.over(earlier)
