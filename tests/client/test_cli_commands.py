"""The other commands from their arguments to their exit codes, over an SDK client that does what a test says."""

import json
from types import SimpleNamespace

import syncline
from syncline.cli import main
from syncline.cli.exits import ExitCode


def test_get_tells_what_is_missing(fake, capsys):
    assert main(["get", "books", "a", "nope"]) == ExitCode.NOT_FOUND

    told = capsys.readouterr()
    assert json.loads(told.out)["data"] == {"a": "\x9b"}
    assert told.err == "books has no record nope\n"


def test_t107_status_escapes_names(fake, capsys):
    """T107"""
    assert main(["status"]) == ExitCode.OK

    out = capsys.readouterr().out
    assert "B\\u001b[31mooks" in out
    assert "1,234" in out
    assert "\x1b" not in out


def test_status_of_a_key_that_may_not_list(fake, monkeypatch, capsys):
    async def refuse():
        raise syncline.PermissionDenied("no")

    monkeypatch.setattr(fake, "list_datasets", refuse)

    assert main(["status", "--json"]) == ExitCode.OK
    assert json.loads(capsys.readouterr().out)["datasets"] is None


def test_dataset_create_reads_its_schema(fake, books_file):
    schema = books_file('{"type": "object"}', "schema.json")

    assert (
        main(["dataset", "create", "books", "--by-key", "a,b.c", "--schema", schema, "--annotation", "x=1=2"])
        == 0
    )

    name, settings = fake.calls[0]
    assert name == "books"
    assert settings["identity"] == syncline.by_key("a", "b.c")
    assert settings["schema"] == '{"type": "object"}'
    assert settings["annotations"] == {"x": "1=2"}


def test_dataset_delete_deletes_what_was_asked_about(fake):
    assert main(["dataset", "delete", "books", "--yes"]) == ExitCode.OK
    assert fake.calls == [("books", {"etag": "e"})]


def test_completion_knows_the_datasets(fake):
    from syncline.cli.complete import complete_dataset

    context = SimpleNamespace(
        params={"server": "x:1", "dataset": None}, parent=SimpleNamespace(params={"key": "k"}, parent=None)
    )

    assert complete_dataset(context, "b") == ["books"]
    assert complete_dataset(context, "z") == []
    assert fake.arguments["address"] == "x:1"
    assert fake.arguments["key"] == "k"
    fake.error = syncline.Unavailable("down")
    assert complete_dataset(context, "b") == []
