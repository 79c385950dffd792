"""`syncline dataset`: make, list, show, change and delete datasets."""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from syncline.cli.arguments import duration_argument
from syncline.cli.complete import complete_dataset
from syncline.cli.exits import CommandError, ExitCode
from syncline.cli.groups import confirm, group
from syncline.cli.invocation import Invocation, command
from syncline.cli.render import age, count, indented_json, local_time, plain_fields

if TYPE_CHECKING:
    from syncline import DatasetInfo, Identity, Retention

app = group("Datasets: make, list, show, change, delete.")

DatasetArgument = Annotated[str, typer.Argument(help="Its name.", autocompletion=complete_dataset)]
ByKey = Annotated[
    list[str] | None,
    typer.Option(
        "--by-key",
        metavar="FIELD[,FIELD]",
        help="Identity: the values of these fields. An equal key is the same record and overwrites it whole.",
    ),
]
ByContent = Annotated[
    bool,
    typer.Option("--by-content", help="Identity: all values, so that pushing a record twice gives one."),
]
Append = Annotated[bool, typer.Option("--append", help="Identity: none; every push is a new record.")]
SchemaFile = Annotated[
    Path | None,
    typer.Option("--schema", metavar="FILE", help="JSON Schema 2020-12 that records have to fit."),
]
DisplayName = Annotated[str | None, typer.Option("--display-name", metavar="TEXT", help="Title for people.")]
Description = Annotated[str | None, typer.Option("--description", metavar="TEXT", help="What the data is.")]
Annotation = Annotated[
    list[str] | None,
    typer.Option("--annotation", metavar="NAME=VALUE", help="A note of yours; may be given several times."),
]
RetentionAge = Annotated[
    str | None,
    typer.Option(
        "--retention-age",
        metavar="TIME",
        help="Keep deletions at least so long for followers to resume (`90 min`, `7d`).",
    ),
]
RetentionRevisions = Annotated[
    int | None,
    typer.Option("--retention-revisions", min=0, help="Keep at least the deletions of so many revisions."),
]


@app.command("create")
@command
async def create(
    call: Invocation,
    dataset: DatasetArgument,
    by_key: ByKey = None,
    by_content: ByContent = False,
    append: Append = False,
    per_source: Annotated[
        bool, typer.Option("--per-source", help="Give every source a key space of its own.")
    ] = False,
    schema: SchemaFile = None,
    display_name: DisplayName = None,
    description: Description = None,
    annotation: Annotation = None,
    retention_age: RetentionAge = None,
    retention_revisions: RetentionRevisions = None,
) -> None:
    """Make a dataset. Without an identity option it is --by-content."""
    identity = _identity(by_key, by_content=by_content, append=append)
    schema_text = _read_schema(schema)
    retention = _retention(retention_age, retention_revisions)
    async with call.connect() as client:
        info = await client.create_dataset(
            dataset,
            identity=identity,
            scope="per_source" if per_source else "shared",
            schema=schema_text,
            display_name=display_name or "",
            description=description or "",
            retention=retention,
            annotations=_annotations(annotation),
        )
    _done(call, info, f"made dataset {info.dataset}, identity {_identity_text(info)}")


@app.command("list")
@command
async def list_datasets(call: Invocation) -> None:
    """List the datasets that the key may see."""
    async with call.connect() as client:
        found = await client.list_datasets()
    if call.output.json:
        for info in found:
            call.output.value(plain_fields(info))
        return
    if not found:
        call.output.note("there is no dataset yet: `syncline dataset create NAME` makes one")
        return
    call.output.table(*dataset_table(found))


def dataset_table(found: "list[DatasetInfo]") -> tuple[list[str], list[list[str]]]:
    """Datasets as a table: columns and rows."""
    rows = [
        [
            info.dataset,
            f"{info.revision:,}",
            f"{info.record_count:,}",
            age(info.commit_time),
            _identity_text(info),
            info.display_name,
        ]
        for info in found
    ]
    return ["dataset", ">revision", ">records", ">newest commit", "identity", "title"], rows


@app.command("show")
@command
async def show(call: Invocation, dataset: DatasetArgument) -> None:
    """Show a dataset."""
    async with call.connect() as client:
        info = await client.get_dataset(dataset)
    if call.output.json:
        call.output.value(plain_fields(info))
        return
    call.output.facts(
        [
            ("dataset", info.dataset),
            ("title", info.display_name),
            ("description", info.description),
            ("identity", _identity_text(info)),
            ("scope", "each source its own keys" if info.scope == "per_source" else "shared by all sources"),
            ("records", f"{info.record_count:,}"),
            ("revision", f"{info.revision:,}"),
            ("newest commit", _with_age(info)),
            ("digest", info.digest.hex()),
            ("retention", _retention_text(info)),
            ("created", local_time(info.create_time)),
            ("changed", local_time(info.update_time)),
            ("uid", info.uid),
            ("annotations", "\n".join(f"{name}={value}" for name, value in info.annotations.items())),
            ("schema", indented_json(msgspec.json.encode(info.schema)) if info.schema else ""),
        ]
    )


@app.command("update")
@command
async def update(
    call: Invocation,
    dataset: DatasetArgument,
    by_key: ByKey = None,
    by_content: ByContent = False,
    append: Append = False,
    rekey: Annotated[
        bool, typer.Option("--rekey", help="Change the identity although there are records: all get new ids.")
    ] = False,
    schema: SchemaFile = None,
    no_schema: Annotated[bool, typer.Option("--no-schema", help="Accept every object again.")] = False,
    display_name: DisplayName = None,
    description: Description = None,
    annotation: Annotation = None,
    retention_age: RetentionAge = None,
    retention_revisions: RetentionRevisions = None,
) -> None:
    """Change settings of a dataset: those that are given, and no others.

    --annotation replaces all annotations.
    """
    if schema is not None and no_schema:
        raise CommandError("--schema and --no-schema exclude each other", code=ExitCode.USAGE)
    settings: dict[str, Any] = {
        "identity": _identity(by_key, by_content=by_content, append=append),
        "schema": {} if no_schema else _read_schema(schema),
        "display_name": display_name,
        "description": description,
        "retention": _retention(retention_age, retention_revisions),
        "annotations": _annotations(annotation),
    }
    if all(value is None for value in settings.values()):
        raise CommandError(
            "nothing to change was given", code=ExitCode.USAGE, hint="see --help for the options."
        )
    async with call.connect() as client:
        info = await client.update_dataset(dataset, rekey=rekey, **settings)
    _done(call, info, f"changed dataset {info.dataset}")


@app.command("delete")
@command
async def delete(
    call: Invocation,
    dataset: DatasetArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a dataset with its records, sources and sessions."""
    async with call.connect() as client:
        info = await client.get_dataset(dataset)
        confirm(f"Delete dataset {dataset} with {count(info.record_count, 'record')}?", yes=yes)
        # The etag: what was asked about is what goes, not one that somebody made again meanwhile.
        await client.delete_dataset(dataset, etag=info.etag)
    if call.output.json:
        call.output.value({"dataset": dataset, "deleted": True})
    else:
        call.output.line(f"deleted dataset {dataset}")


def _done(call: Invocation, info: "DatasetInfo", text: str) -> None:
    if call.output.json:
        call.output.value(plain_fields(info))
    else:
        call.output.line(text)


def _identity(by_key: list[str] | None, *, by_content: bool, append: bool) -> "Identity | None":
    import syncline

    if bool(by_key) + by_content + append > 1:
        raise CommandError("--by-key, --by-content and --append exclude each other", code=ExitCode.USAGE)
    if by_key:
        fields = [field for part in by_key for field in part.split(",")]
        return syncline.by_key(*fields)
    if by_content:
        return syncline.by_content()
    return syncline.append() if append else None


def _identity_text(info: "DatasetInfo") -> str:
    if info.identity.kind == "key":
        return f"key({', '.join(info.identity.key_fields)})"
    return info.identity.kind


def _read_schema(path: Path | None) -> str | None:
    """The text of a schema file, which the server judges."""
    if path is None:
        return None
    try:
        text = path.read_text(encoding="utf-8-sig")
        msgspec.json.decode(text)
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}", code=ExitCode.USAGE) from None
    except UnicodeDecodeError:
        raise CommandError(f"{path} is not UTF-8 text", code=ExitCode.USAGE) from None
    except msgspec.DecodeError as error:
        raise CommandError(f"{path} is not JSON: {error}", code=ExitCode.USAGE) from None
    return text


def _annotations(given: list[str] | None) -> Mapping[str, str] | None:
    if given is None:
        return None
    pairs = [entry.partition("=") for entry in given]
    for name, equals, _ in pairs:
        if not name or not equals:
            raise CommandError(f"--annotation takes NAME=VALUE, not {name!r}", code=ExitCode.USAGE)
    return {name: value for name, _, value in pairs}


def _retention(min_age: str | None, min_revisions: int | None) -> "Retention | None":
    import syncline

    if min_age is None and min_revisions is None:
        return None
    parsed: timedelta | None = duration_argument("--retention-age", min_age) if min_age is not None else None
    return syncline.Retention(min_age=parsed, min_revisions=min_revisions)


def _retention_text(info: "DatasetInfo") -> str:
    parts = []
    if info.retention.min_age is not None:
        parts.append(f"at least {info.retention.min_age}")
    if info.retention.min_revisions is not None:
        parts.append(f"at least {count(info.retention.min_revisions, 'revision')}")
    return ", ".join(parts) or "the server's setting"


def _with_age(info: "DatasetInfo") -> str:
    if info.commit_time is None:
        return "none yet"
    return f"{local_time(info.commit_time)} ({age(info.commit_time)} ago)"
