"""Nodes, from what the server tells of them to what `syncline status` shows."""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

import syncline
from support.scripted_server import Refuse, ScriptedServer
from syncline.cli import main
from syncline.cli.exits import ExitCode
from syncline.v1 import server_service_pb2

THEN = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
NODE = syncline.Node(
    name="a\x1b[31m:7420",
    node_id="1",
    addresses=("0.0.0.0:7420", "unix:/run/s"),
    version="1.0",
    start_time=THEN - timedelta(hours=3),
    report_time=THEN - timedelta(seconds=2),
    lag=timedelta(),
    silent=False,
    this_node=True,
)
OTHER = replace(NODE, name="b", node_id="2", lag=timedelta(seconds=1.25), silent=True, this_node=False)


async def test_what_the_server_tells_of_nodes(scripted: ScriptedServer, client: syncline.Client) -> None:
    told = server_service_pb2.Node(
        name="b",
        node_id="2",
        addresses=["h:1"],
        version="1.0",
        start_time=Timestamp(seconds=1_700_000_000),
        report_time=Timestamp(seconds=1_700_000_000, nanos=5_000),
        lag=Duration(seconds=1, nanos=250_000_000),
        silent=True,
    )
    scripted.script("ListNodes", server_service_pb2.ListNodesResponse(nodes=[told]))
    assert await client.nodes() == [
        syncline.Node(
            name="b",
            node_id="2",
            addresses=("h:1",),
            version="1.0",
            start_time=THEN,
            report_time=THEN + timedelta(microseconds=5),
            lag=timedelta(seconds=1.25),
            silent=True,
            this_node=False,
        )
    ]


class Answers:
    """A client that has these nodes, or raises this."""

    address = "h:7420"

    def __init__(self, nodes: list[syncline.Node] | Exception, role: syncline.models.Role = "admin") -> None:
        self._nodes = nodes
        self._role = role

    async def __aenter__(self) -> "Answers":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        pass

    async def server_info(self) -> syncline.ServerInfo:
        limits = syncline.Limits(
            records_per_call=1, bytes_per_call=1, bytes_per_record=1, depth=1, bytes_per_record_id=1
        )
        return syncline.ServerInfo(
            version="1.0",
            store="postgres",
            server_time=THEN,
            start_time=THEN,
            limits=limits,
            role=self._role,
            writable=True,
        )

    async def list_datasets(self) -> list[syncline.DatasetInfo]:
        return []

    async def nodes(self) -> list[syncline.Node]:
        if isinstance(self._nodes, Exception):
            raise self._nodes
        return self._nodes


def status(monkeypatch: pytest.MonkeyPatch, answers: Answers, *arguments: str) -> int:
    def connect(address: str, **how: Any) -> Answers:
        return answers

    monkeypatch.setattr(syncline, "connect", connect)
    return main(["status", *arguments])


def test_t107_status_shows_nodes_as_a_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """T107: names of nodes come from their operators, and are escaped all the same."""
    assert status(monkeypatch, Answers([NODE, OTHER])) == ExitCode.OK
    lines = capsys.readouterr().out.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("NODE"))
    assert [line.split() for line in lines[head : head + 3]] == [
        ["NODE", "STATE", "VERSION", "UP", "FOR", "REPORTED", "LAG", "ADDRESSES"],
        [
            "a\\u001b[31m:7420",
            "this",
            "one",
            "1.0",
            "3",
            "h",
            "2",
            "s",
            "none",
            "0.0.0.0:7420,",
            "unix:/run/s",
        ],
        ["b", "silent", "1.0", "3", "h", "2", "s", "1.2", "s", "0.0.0.0:7420,", "unix:/run/s"],
    ]
    assert lines[head + 3] == "1 node no longer reporting"


def json_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answers: Answers) -> Any:
    assert status(monkeypatch, answers, "--json") == ExitCode.OK
    told: Mapping[str, Any] = json.loads(capsys.readouterr().out)
    return told["nodes"]


def test_status_tells_nodes_as_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (node,) = json_of(monkeypatch, capsys, Answers([OTHER]))
    assert (node["name"], node["lag"], node["silent"], node["this_node"]) == ("b", 1.25, True, False)
    assert node["addresses"] == ["0.0.0.0:7420", "unix:/run/s"]
    assert node["report_time"] == "2023-11-14T22:13:18Z"


def test_status_where_nodes_are_not_to_be_had(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A key that is not ADMIN does not ask; a server of the version before does not know."""
    assert json_of(monkeypatch, capsys, Answers(AssertionError("asked"), role="read")) is None
    assert json_of(monkeypatch, capsys, Answers(syncline.NotOffered("no"))) is None
    assert status(monkeypatch, Answers(syncline.NotOffered("no"))) == ExitCode.OK
    assert "NODE" not in capsys.readouterr().out


async def test_a_server_that_does_not_know_of_nodes(
    scripted: ScriptedServer, client: syncline.Client
) -> None:
    """What gRPC itself answers where a method is not there."""
    scripted.script("ListNodes", Refuse("UNIMPLEMENTED"))
    with pytest.raises(syncline.NotOffered):
        await client.nodes()
