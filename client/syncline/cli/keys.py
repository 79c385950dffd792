"""`syncline key`: who may do what."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from syncline.cli.arguments import moment_argument
from syncline.cli.exits import CommandError, ExitCode
from syncline.cli.groups import confirm, group
from syncline.cli.invocation import Invocation, command
from syncline.cli.render import age, local_time, plain_fields

if TYPE_CHECKING:
    from syncline import KeyInfo

app = group("Keys: make, list, show, rotate, delete, which revokes.")

KeyArgument = Annotated[str, typer.Argument(metavar="KEY_ID", help="Its id, the public part of the secret.")]


class Role(StrEnum):
    """What the holder of a key may do."""

    ADMIN = "admin"
    PUSH = "push"
    READ = "read"


@app.command("create")
@command
async def create(
    call: Invocation,
    role: Annotated[Role, typer.Argument(help="admin: everything. push: one source. read: datasets.")],
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            "--dataset",
            metavar="NAME",
            help="push: its dataset. read: a dataset, or a prefix that ends in *; may be given several times.",
        ),
    ] = None,
    source: Annotated[
        str | None, typer.Option("--source", help="push: its source. Default: default.")
    ] = None,
    display_name: Annotated[
        str, typer.Option("--display-name", metavar="TEXT", help="Title for people.")
    ] = "",
    expires: Annotated[
        str | None,
        typer.Option("--expires", metavar="TIME", help="When it ends: `30d`, or a date. Default: never."),
    ] = None,
) -> None:
    """Make a key. Its secret is printed once, and cannot be read again."""
    datasets = dataset or []
    _check_scope(role, datasets, source)
    async with call.connect() as client:
        info = await client.create_key(
            role.value,
            dataset=datasets[0] if role is Role.PUSH else None,
            source=source,
            datasets=datasets if role is Role.READ else (),
            display_name=display_name,
            expire_time=moment_argument("--expires", expires) if expires else None,
        )
    _secret(call, info)


def _check_scope(role: Role, datasets: list[str], source: str | None) -> None:
    if role is Role.PUSH and len(datasets) != 1:
        raise CommandError("a push key is for one source: give one --dataset", code=ExitCode.USAGE)
    if role is Role.READ and not datasets:
        raise CommandError(
            "a read key names what it may read: --dataset NAME, or --dataset '*'", code=ExitCode.USAGE
        )
    if role is Role.ADMIN and datasets:
        raise CommandError("an admin key may do everything: it takes no --dataset", code=ExitCode.USAGE)
    if role is not Role.PUSH and source is not None:
        raise CommandError(f"--source is for push keys, not for {role}", code=ExitCode.USAGE)


@app.command("list")
@command
async def list_keys(call: Invocation) -> None:
    """List all keys, without their secrets."""
    async with call.connect() as client:
        found = await client.list_keys()
    if call.output.json:
        for info in found:
            call.output.value(_fields(info))
        return
    call.output.table(
        ["key", "role", "scope", ">last used", "expires", "title"],
        [
            [
                info.key_id,
                info.role,
                _scope(info),
                age(info.last_used_time),
                local_time(info.expire_time),
                info.display_name,
            ]
            for info in found
        ],
    )


@app.command("show")
@command
async def show(call: Invocation, key_id: KeyArgument) -> None:
    """Show a key, without its secret."""
    async with call.connect() as client:
        info = await client.get_key(key_id)
    if call.output.json:
        call.output.value(_fields(info))
        return
    call.output.facts(
        [
            ("key", info.key_id),
            ("title", info.display_name),
            ("role", info.role),
            ("scope", _scope(info)),
            ("last used", local_time(info.last_used_time) if info.last_used_time else "never"),
            ("expires", local_time(info.expire_time) if info.expire_time else "never"),
            ("created", local_time(info.create_time)),
        ]
    )


@app.command("rotate")
@command
async def rotate(
    call: Invocation,
    key_id: KeyArgument,
    old_expires: Annotated[
        str | None,
        typer.Option(
            "--old-expires", metavar="TIME", help="When the old key ends: `1h`, `0s`. Default: 24 hours."
        ),
    ] = None,
) -> None:
    """Make a second key with the same rights, and let the first one end after an overlap."""
    ends = moment_argument("--old-expires", old_expires) if old_expires else None
    async with call.connect() as client:
        info = await client.rotate_key(key_id, expire_time=ends)
    _secret(call, info)


@app.command("delete")
@command
async def delete(
    call: Invocation,
    key_id: KeyArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Revoke a key at once; streams that use it end within 30 s."""
    async with call.connect() as client:
        info = await client.get_key(key_id)
        confirm(f"Revoke {info.role} key {key_id} ({_scope(info)})?", yes=yes)
        await client.delete_key(key_id, etag=info.etag)
    if call.output.json:
        call.output.value({"key_id": key_id, "deleted": True})
    else:
        call.output.line(f"revoked key {key_id}")


def _scope(info: "KeyInfo") -> str:
    if info.role == "push":
        return f"{info.dataset}/{info.source}"
    return ", ".join(info.datasets) if info.role == "read" else "everything"


def _fields(info: "KeyInfo") -> dict[str, object]:
    return {name: value for name, value in plain_fields(info).items() if name != "secret"}


def _secret(call: Invocation, info: "KeyInfo") -> None:
    if call.output.json:
        call.output.value(plain_fields(info))
        return
    if not info.secret:
        raise CommandError(
            f"key {info.key_id} was made, but its secret got lost with the connection",
            hint=f"`syncline key rotate {info.key_id}` makes another.",
        )
    # The secret alone on standard output, so that $(syncline key create …) is the key.
    call.output.note(f"made {info.role} key {info.key_id} for {_scope(info)}; its secret is shown this once:")
    call.output.line(info.secret)
