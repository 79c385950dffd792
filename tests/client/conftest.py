from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

import syncline
from support.fake_sdk import FakeClient
from support.scripted_replica import Subscribed
from support.scripted_server import ScriptedServer, scripted_server


@pytest.fixture(autouse=True)
def no_ambient_key(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.delenv("SYNCLINE_KEY", raising=False)
    monkeypatch.setenv("SYNCLINE_DATA", str(tmp_path_factory.mktemp("no-data")))


@pytest.fixture
async def scripted() -> AsyncIterator[ScriptedServer]:
    async with scripted_server() as server:
        yield server


@pytest.fixture
async def client(scripted: ScriptedServer) -> AsyncIterator[syncline.Client]:
    async with scripted.client() as client:
        yield client


@pytest.fixture
def stream(scripted: ScriptedServer) -> Subscribed:
    """What replicas are told."""
    return Subscribed(scripted)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    """The client that commands connect with, in place of a real one."""
    fake = FakeClient()

    def connect(address: str, **arguments: object) -> FakeClient:
        fake.arguments = {"address": address, **arguments}
        return fake

    monkeypatch.setattr(syncline, "connect", connect)
    for name in (
        "SYNCLINE_SERVER",
        "SYNCLINE_TLS",
        "SYNCLINE_CA",
        "SYNCLINE_CERT",
        "SYNCLINE_INSECURE",
        "NO_COLOR",
    ):
        monkeypatch.delenv(name, raising=False)
    return fake


@pytest.fixture
def books_file(tmp_path: Path) -> Callable[..., str]:
    """Writes a file, and tells where."""

    def write(text: str, name: str = "books.jsonl") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write
