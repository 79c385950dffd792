from collections.abc import AsyncIterator

import pytest

import syncline
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
