"""`syncline verify`: prove that a file is an exact copy."""

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from syncline.cli.complete import complete_dataset
from syncline.cli.exits import CommandError, ExitCode
from syncline.cli.invocation import Invocation, command
from syncline.cli.render import count

if TYPE_CHECKING:
    from syncline import Dataset, ReplicaProof


class ProofLine(msgspec.Struct):
    """What `verify` prints with --json."""

    is_proven: bool
    is_intact: bool
    revision: int
    record_count: int
    digest: str
    server_revision: int
    changes: int
    reason: str


@command
async def verify(
    call: Invocation,
    dataset: Annotated[
        str, typer.Argument(help="Dataset that it is a copy of.", autocompletion=complete_dataset)
    ],
    file: Annotated[Path, typer.Argument(help="File that `mirror` or a replica made.")],
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Mend it where it differs, by fetching only that, and prove it again."),
    ] = False,
) -> ExitCode:
    """Prove that a file is an exact copy of a dataset.

    Count and digest are computed from the bytes of all records, the changes since the file's revision counted in, and
    the result compared with what the server says of its newest revision. The file is only read, also while another
    process writes it, and compared with the filter and fields that it was made with.

    Exit codes: 0, it is proven; 1, it is not, and the reason is on standard error; 2, it is no replica of this
    dataset; those of all commands where the server cannot be asked.
    """
    async with call.connect() as client:
        target = client.dataset(dataset)
        proof = await _look(target, file)
        if repair and not proof.is_proven:
            call.output.note(f"{file}: {proof.reason}; mending it")
            await _mend(target, file, proof)
            proof = await _look(target, file)
    if call.output.json:
        call.output.value(_line(proof))
    elif proof.is_proven:
        call.output.line(
            f"{file} is {dataset} at revision {proof.revision:,}: {count(proof.record_count, 'record')}, "
            f"digest {proof.digest.hex()}, proven by the server at revision {proof.server_revision:,}"
        )
    if not proof.is_proven:
        raise CommandError(
            f"{file} at revision {proof.revision:,} is not proven: {proof.reason}",
            hint="" if repair else f"`syncline verify {dataset} {file} --repair` mends it.",
        )
    return ExitCode.OK


async def _look(target: "Dataset[Any]", file: Path) -> "ReplicaProof":
    from syncline import ReplicaUnusable

    try:
        return await target.verify_replica(file)
    except ReplicaUnusable as error:
        code = ExitCode.ERROR if _is_damaged(error.__cause__) else ExitCode.USAGE
        raise CommandError(error.message, code=code) from None


def _is_damaged(cause: BaseException | None) -> bool:
    """Whether SQLite found its own structures broken: a replica, but certainly no exact copy."""
    return (
        isinstance(cause, sqlite3.DatabaseError)
        and getattr(cause, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_CORRUPT
    )


async def _mend(target: "Dataset[Any]", file: Path, proof: "ReplicaProof") -> None:
    async with target.replica(file, filter=proof.filter, fields=proof.fields) as replica:
        if replica.is_read_only:
            raise CommandError(
                f"{file} is kept by another process",
                code=ExitCode.CONFLICT,
                hint="that one mends it at its next start; end it first to mend it now.",
            )
        await replica.verify()
        await replica.ready()


def _line(proof: "ReplicaProof") -> ProofLine:
    return ProofLine(
        is_proven=proof.is_proven,
        is_intact=proof.is_intact,
        revision=proof.revision,
        record_count=proof.record_count,
        digest=proof.digest.hex(),
        server_revision=proof.server_revision,
        changes=proof.changes,
        reason=proof.reason,
    )
