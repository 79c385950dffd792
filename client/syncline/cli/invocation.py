"""One run of one command: its options, output and connection, and how it ends.

``command`` is the decorator of all commands. It adds the shared options, runs the coroutine, ends it
cleanly on Ctrl-C and SIGTERM, and turns what it raises into a few lines on standard error and an exit code.
"""

import asyncio
import contextlib
import functools
import os
import signal
import sys
import textwrap
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Concatenate, Final

import typer

from syncline.cli.exits import ExitCode, Failure
from syncline.cli.options import Options, take_options, with_options
from syncline.cli.render import Output, escape

if TYPE_CHECKING:
    from syncline import Client

_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_STOP_CODES: Final = {signal.SIGINT: ExitCode.INTERRUPTED, signal.SIGTERM: ExitCode.TERMINATED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """What a command works with."""

    options: Options
    output: Output

    @contextlib.asynccontextmanager
    async def connect(self) -> "AsyncIterator[Client]":
        """A client for the server that the options name."""
        from syncline.cli.connection import connect

        async with connect(self.options) as client:
            yield client

    @property
    def json_lines(self) -> bool:
        """Whether records and changes go out as JSON lines: asked for, or no person reads."""
        return self.output.json or not self.output.out_is_terminal


class _StoppedError(Exception):
    """A signal asked the command to end."""

    def __init__(self, code: ExitCode) -> None:
        super().__init__(code)
        self.code = code


def command(
    function: Callable[Concatenate[Invocation, ...], Coroutine[Any, Any, ExitCode | None]],
) -> Callable[..., None]:
    """Make a coroutine function a command. Its first parameter is the Invocation; it may return an ExitCode."""

    @functools.wraps(function)
    def run(context: typer.Context, **values: Any) -> None:
        options = take_options(context, values)
        output = Output(json=bool(options.json), colour=False if options.no_color else None)
        call = Invocation(options=options, output=output)
        code = _ended(lambda: _finish(call, function(call, **values)), call)
        if code is not ExitCode.OK:
            raise typer.Exit(code)

    del run.__wrapped__  # typer would look through it to the coroutine function
    with_options(function, run, leave_out=1)
    return run


def shared_callback(context: typer.Context, **values: Any) -> None:
    """Keep the shared options that stand before a command's name."""
    context.obj = take_options(context, values)


def _no_parameters() -> None: ...


with_options(_no_parameters, shared_callback)


def _finish(call: Invocation, coroutine: Coroutine[Any, Any, ExitCode | None]) -> ExitCode:
    code = asyncio.run(_until_signal(coroutine))
    call.output.out.flush()
    return ExitCode.OK if code is None else code


async def _until_signal(coroutine: Coroutine[Any, Any, ExitCode | None]) -> ExitCode | None:
    """Run to the end, or cancel on the first SIGINT or SIGTERM; the second one ends the process at once."""
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(coroutine)
    received: list[signal.Signals] = []

    def stop(signum: signal.Signals) -> None:
        if received:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        received.append(signum)
        task.cancel()

    with contextlib.suppress(
        NotImplementedError, RuntimeError
    ):  # not on the main thread, or not on this system
        for signum in _STOP_SIGNALS:
            loop.add_signal_handler(signum, stop, signum)
    try:
        return await task
    except asyncio.CancelledError:
        if not received:
            raise
        raise _StoppedError(_STOP_CODES[received[0]]) from None


def _ended(work: Callable[[], ExitCode], call: Invocation) -> ExitCode:
    """Do the work and tell its errors; the one place where they are caught."""
    try:
        return work()
    except _StoppedError as stopped:
        _flush_quietly()
        return stopped.code
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        silence_stdout()
        return ExitCode.BROKEN_PIPE
    except Exception as error:  # noqa: BLE001 - whatever it is, the user gets a message, not a traceback
        from syncline.cli.failures import failure_of

        _flush_quietly()
        failure = failure_of(error)
        if call.options.debug:
            traceback.print_exception(error)
        tell(failure, call.output)
        return failure.code


def tell(failure: Failure, output: Output) -> None:
    """Write a failure to standard error: for people, or as one line of JSON."""
    with contextlib.suppress(BrokenPipeError):
        if output.json:
            output.note(failure.json())
            return
        first, *more = failure.message.splitlines() or [""]
        output.note(output.paint("error:", "red", "bold", stream=output.err) + " " + escape(first))
        for line in textwrap.dedent("\n".join(more)).splitlines():  # a caret keeps its place
            output.note("  " + escape(line.rstrip()))
        for detail in failure.details:
            output.note("  " + escape(detail))
        if failure.hint:
            output.note(output.paint("hint:", "cyan", stream=output.err) + " " + escape(failure.hint))


def _flush_quietly() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        silence_stdout()


def silence_stdout() -> None:
    """Send what is still buffered for a reader that went away to nowhere, so that the exit is silent."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
