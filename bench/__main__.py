"""``python -m bench [--quick] [--only FIGURE]``: measure, print a table, write ``bench/results.json``."""

import argparse
import asyncio
import contextlib
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from rich.console import Console

from bench import figures, loops, machine, report
from bench.measure import Outcome, Room, Stopwatch, work_directory
from bench.systems import all_systems
from bench.systems.base import System, Unavailable
from bench.systems.sqlite import Sqlite

RESULTS = Path(__file__).with_name("results.json")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller sets and fewer rounds, under 90 s")
    parser.add_argument(
        "--only", action="append", choices=list(figures.ALL), metavar="FIGURE", help=", ".join(figures.ALL)
    )
    parser.add_argument("--directory", type=Path, help="where the servers keep their data meanwhile")
    parser.add_argument("--output", type=Path, default=RESULTS, help="default: %(default)s")
    return parser.parse_args()


def _present(console: Console) -> Mapping[str, System]:
    """The systems that are on this machine; the others are named."""
    present = {}
    for name, system in all_systems().items():
        try:
            system.version()
        except Unavailable as missing:
            console.print(f"without {name}: {missing}")
        else:
            present[name] = system
    return present


@contextlib.contextmanager
def _progress(console: Console, name: str) -> Iterator[Callable[[str], None]]:
    """Shows what is being measured; outside a terminal nothing moves."""
    with console.status(name) if console.is_terminal else contextlib.nullcontext() as status:
        yield lambda text: status.update(f"{name}: {text}") if status else None


async def _measure(
    arguments: argparse.Namespace,
    console: Console,
    parent: Path,
    peers: Mapping[str, System],
    systems: dict[str, dict[str, str]],
) -> tuple[Outcome, list[str]]:
    found: list[Outcome] = []
    failed: list[str] = []
    for name in arguments.only or figures.ALL:
        watch = Stopwatch()
        with _progress(console, name) as say, work_directory(parent) as directory:
            room = Room(directory=directory, quick=arguments.quick, peers=peers, say=say, systems=systems)
            try:
                found.append(await figures.ALL[name](room))
            except Unavailable as missing:
                console.print(f"without {name}: {missing}")
                continue
            except Exception:  # noqa: BLE001 - the other figures are worth having; the exit code tells
                console.print(f"{name} failed:\n{traceback.format_exc()}", highlight=False, markup=False)
                failed.append(name)
        console.print(f"{name}: {watch.seconds:.0f} s")
    outcome = Outcome(
        figures=[figure for outcome in found for figure in outcome.figures],
        requirements=[needed for outcome in found for needed in outcome.requirements],
    )
    return outcome, failed


async def main() -> int:
    """Measure everything that was asked for; 1 when a figure could not be measured. SIGTERM ends the servers too."""
    arguments = _arguments()
    console = Console(width=None if sys.stdout.isatty() else 180)
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    parent = arguments.directory or machine.disk_directory()
    facts = machine.describe(parent)
    watch = Stopwatch()
    present = _present(console)
    peers = {name: system for name, system in present.items() if name != "syncline"}
    systems = {
        name: {"version": system.version(), "durability": system.durability}
        for name, system in present.items()
    }
    systems["sqlite"] = {"version": Sqlite.version(), "durability": Sqlite.durability}
    outcome, failed = await _measure(arguments, console, parent, peers, systems)
    report.show(console, outcome, facts, systems)
    report.write_json(arguments.output, report.as_json(outcome, facts, systems))
    console.print(f"{arguments.output} written after {watch.seconds:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(loops.run(main()))
