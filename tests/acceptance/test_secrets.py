"""T102: what is secret shows nowhere: not in logs, metrics, errors, reprs, nor in the files of the store."""

import asyncio
import json
import urllib.request

import pytest

import syncline
from fixtures.fix_secrets import find_keys
from support.postgres_cluster import shared_cluster

CANARY = "canary-in-the-data-7f3a"


def one_letter_wrong(secret):
    return secret[:-12] + ("A" if secret[-12] != "A" else "B") + secret[-11:]


@pytest.fixture
async def server(make_server):
    async with make_server(SYNCLINE_LOG_LEVEL="debug", SYNCLINE_HTTP="127.0.0.1:0") as server:
        yield server


async def test_t102_secrets_and_payloads_show_nowhere(server):
    shown = []
    async with syncline.connect(server.address, key=server.key) as admin:
        await admin.create_dataset("vault", identity=syncline.by_key("id"), schema={"required": ["id"]})
        keys = [
            await admin.create_key("push", dataset="vault", source="default"),
            await admin.create_key("read", datasets=["vault"]),
            await admin.create_key("admin"),
        ]
        keys += [await admin.rotate_key(keys[1].key_id)]
        shown += [repr(admin), *map(repr, keys), *map(repr, await admin.list_keys())]
        secrets = [server.key, *(key.secret for key in keys)]
        await use_every_key(server, keys, shown)
        shown += [await refusal(server, one_letter_wrong(keys[0].secret)), await refusal(server, "garbage")]
        for key in keys:
            await admin.delete_key(key.key_id)
        shown += [await refusal(server, keys[2].secret)]
    metrics = await asyncio.to_thread(read_metrics, server)
    await server.stop()

    assert len(set(secrets)) == len(secrets)
    assert "server.started" in server.log
    for place, text in {"log": server.log, "metrics": metrics, "errors and reprs": "\n".join(shown)}.items():
        assert find_keys(text) == [], place
        assert [place for secret in secrets if secret.rpartition("_")[2][:20] in text] == []
        assert CANARY not in text or place == "errors and reprs"
    for name, content in stored(server):
        for secret in (secret.rpartition("_")[2].encode() for secret in secrets):
            assert secret not in content, name
            assert secret.hex().encode() not in content, name


def stored(server):
    """Everything in the store, by name of the file: also of a dump, in which bytes are written as hexadecimal digits."""
    files = [path for path in server.data.rglob("*") if path.is_file() and path.name != "admin.key"]
    if server.store:
        dump = shared_cluster().directory / "secrets.sql"
        shared_cluster().run("pg_dump", f"--file={dump}", f"--dbname={server.store}")
        files.append(dump)
    assert files
    return [(file.name, file.read_bytes()) for file in files]


async def use_every_key(server, keys, shown):
    for key in keys:
        async with syncline.connect(server.address, key=key.secret) as client:
            vault = client.dataset("vault")
            shown.append(repr(client))
            calls = (
                vault.push([{"id": "1", "text": CANARY}]),
                vault.push([{"text": CANARY}]),
                vault.sync(),
                client.list_keys(),
            )
            for answer in await asyncio.gather(*calls, return_exceptions=True):
                if isinstance(answer, syncline.SynclineError):
                    shown += [str(answer), repr(answer), str(answer.metadata)]


async def refusal(server, secret):
    async with syncline.connect(server.address, key=secret) as client:
        with pytest.raises(syncline.NotAuthenticated) as refused:
            await client.list_datasets()
    return f"{refused.value} {refused.value!r} {refused.value.metadata}"


def read_metrics(server):
    started = next(line for line in server.log.splitlines() if "server.started" in line)
    with urllib.request.urlopen(f"http://{json.loads(started)['http']}/metrics", timeout=5) as answer:
        return answer.read().decode()
