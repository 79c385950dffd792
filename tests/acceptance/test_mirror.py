"""Mirrors of many datasets on one stream; heads and uptake (G7, G11, G12)."""

import asyncio

import pytest

import syncline
from support.proxy import Proxy
from support.waiting import until


async def make(client, *names, records=3):
    for name in names:
        await client.create_dataset(name, identity=syncline.by_key("id"))
        await client.dataset(name).push([{"id": f"{name}-{i}", "v": i} for i in range(records)])


def content(mirror):
    return {name: {key: record["v"] for key, record in replica.items()} for name, replica in mirror.items()}


async def ready(mirror):
    await mirror.ready(timeout_seconds=20)


async def test_g07_a_mirror_holds_what_there_is_and_what_comes(client, tmp_path):
    """G7: datasets created later appear; those deleted are told and their files stay; a name that comes back."""
    await make(client, "sensor-a", "sensor-b", "tea")
    async with client.mirror("sensor-*", tmp_path / "mirror") as mirror:
        await ready(mirror)
        assert sorted(mirror) == ["sensor-a", "sensor-b"]
        assert content(mirror)["sensor-a"] == {"sensor-a-0": 0, "sensor-a-1": 1, "sensor-a-2": 2}
        assert mirror.staleness is not None

        await make(client, "sensor-c", "tea-2", records=1)
        await until(lambda: "sensor-c" in mirror)
        await ready(mirror)
        assert content(mirror)["sensor-c"] == {"sensor-c-0": 0}
        result = await client.dataset("sensor-c").push([{"id": "new", "v": 9}])
        await mirror["sensor-c"].wait_for(result.revision)
        assert mirror["sensor-c"]["new"]["v"] == 9

        await client.delete_dataset("sensor-b")
        await until(lambda: "sensor-b" in mirror.gone)
        assert "sensor-b" not in mirror
        assert (tmp_path / "mirror" / "sensor-b.db").exists()

        await make(client, "sensor-b", records=1)
        await until(lambda: "sensor-b" in mirror)
        assert not mirror.gone
        await ready(mirror)
        await until(lambda: content(mirror)["sensor-b"] == {"sensor-b-0": 0})
    assert sorted(path.name for path in (tmp_path / "mirror").glob("*.db")) == [
        "sensor-a.db",
        "sensor-b.db",
        "sensor-c.db",
    ]


async def test_g11_a_mirror_goes_on_from_its_files(server, client, tmp_path):
    """G11: what changed meanwhile, what was deleted meanwhile; readable before any server answers."""
    await make(client, "a1", "a2", "a3")
    async with client.mirror("*", tmp_path) as mirror:
        await ready(mirror)
    await client.dataset("a1").push([{"id": "later", "v": 7}])
    await client.delete_dataset("a2")
    await make(client, "a4")
    await server.stop()

    async with (
        syncline.connect(server.address, key=server.key) as other,
        other.mirror("*", tmp_path) as mirror,
    ):
        assert sorted(mirror) == ["a1", "a2", "a3"]
        assert "later" not in mirror["a1"]
        with pytest.raises(syncline.StaleData):
            await mirror.ready(timeout_seconds=0.1)
        await server.start()
        await ready(mirror)
        assert mirror["a1"]["later"]["v"] == 7
        await until(lambda: sorted(mirror) == ["a1", "a3", "a4"])
        assert mirror.gone == {"a2"}


async def test_g07_a_mirror_over_a_link_that_is_cut(shared_server, client, tmp_path):
    """T49: cut after every few messages, while all datasets change; afterwards all copies are exact."""
    names = [f"d{number}" for number in range(8)]
    await make(client, *names, records=20)
    async with (
        Proxy.to(shared_server.address) as proxy,
        syncline.connect(proxy.address, key=shared_server.key) as far,
        far.mirror("d*", tmp_path) as mirror,
    ):
        proxy.cut_after_answers(25)
        last = {}
        for number in range(40):
            name = names[number % len(names)]
            records = [{"id": f"{name}-{number % 7}", "v": number}, {"id": f"{name}-{number}", "v": number}]
            last[name] = await client.dataset(name).push(records)
            await asyncio.sleep(0.005)
        proxy.cut_when = lambda total, on_connection: False
        await ready(mirror)
        for name, result in last.items():
            await mirror[name].wait_for(result.revision, timeout_seconds=20)

        heads = {head.dataset: head for head in await client.heads("d")}
        assert {name: (one.revision, len(one), one.digest) for name, one in mirror.items()} == {
            name: (head.revision, head.record_count, head.digest) for name, head in heads.items()
        }
        assert proxy.cuts > 0
        assert all(replica.repairs == [] for replica in mirror.values())


async def test_one_damaged_file_does_not_hold_up_the_others(client, tmp_path):
    await make(client, "x1", "x2")
    (tmp_path / "x1.db").write_text("not a database, whatever else it is" * 100)

    async with client.mirror("x*", tmp_path) as mirror:
        with pytest.raises(syncline.ReplicaUnusable):
            await ready(mirror)
        await until(lambda: "x2" in mirror)
        await mirror["x2"].ready(timeout_seconds=20)
        assert set(mirror.failed) == {"x1"}
        assert list(mirror) == ["x2"]


async def test_small_windows_never_run_dry(client):
    """The two sides count credit alike: 400 parts through a window of two, without a stop."""
    from syncline._subscription import Terms

    await make(client, "w", records=1)
    feed = client.connection.updates.subscribe("w", decode=bytes, terms=Terms(window_bytes=300))
    seen = 0
    async with feed, asyncio.timeout(20):
        for number in range(200):
            result = await client.dataset("w").push([{"id": "k", "v": number}])
            while seen < result.revision:
                part = await feed.next_part()
                seen = part.revision if isinstance(part, syncline.Checkpoint) else seen


async def test_mirror_patterns(client, tmp_path):
    for pattern in ("sensors", "a*b*", "A*", "sensors/*"):
        with pytest.raises(ValueError, match="prefix and a star"):
            client.mirror(pattern, tmp_path)
    mirror = client.mirror("a-*", tmp_path)
    with pytest.raises(RuntimeError, match="async with"):
        await mirror.ready()


async def test_heads_are_those_of_the_prefix(client):
    await make(client, "h1", "h2", "i1")

    heads = await client.heads("h")

    assert [(head.dataset, head.revision, head.record_count) for head in heads] == [
        ("h1", 1, 3),
        ("h2", 1, 3),
    ]
    assert heads[0].digest != heads[1].digest
    assert len(await client.heads()) == 3


async def test_a_push_waits_for_replicas(client, tmp_path):
    await make(client, "u")
    dataset = client.dataset("u")
    alone = await dataset.push([{"id": "a", "v": 1}], wait_uptake=1.0)
    assert alone.uptake is not None
    assert (alone.uptake.replica_count, alone.uptake.ratio) == (0, 1.0)

    async with dataset.replica(tmp_path / "u.db", replica_id="desk-1") as replica:
        await replica.ready()
        result = await dataset.push([{"id": "b", "v": 1}], wait_uptake=1.0, timeout=20)
        assert result.uptake is not None
        assert (result.uptake.reached_count, result.uptake.revision) == (1, result.revision)
        assert replica.revision >= result.revision

    late = await dataset.push([{"id": "c", "v": 1}], wait_uptake=0.5, timeout=0.3)
    assert late.uptake is not None
    assert late.uptake.ratio == 0.0
    uptake = await dataset.uptake()
    (desk,) = uptake.replicas
    assert (desk.replica_id, desk.revision, desk.connected) == ("desk-1", result.revision, False)
    assert desk.behind_since is not None
    with pytest.raises(ValueError, match="from 0 to 1"):
        await dataset.uptake(wait_ratio=2.0)
