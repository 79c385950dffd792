"""What a server does beside serving, the monitoring address, the log, and the versions it accepts."""

import asyncio
import io
import json
import logging
import re
import tomllib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import structlog

from syncline_server import upkeep
from syncline_server.clock import SystemClock
from syncline_server.errors import NotFound, ResourceExhausted
from syncline_server.feed.uptake import Uptake
from syncline_server.logs import configure_logs, printable
from syncline_server.metrics import Metrics
from syncline_server.model import Dataset, Head, Identity, Lease, RecordScope, Retention
from syncline_server.monitoring import monitoring_server
from syncline_server.store.abc import PurgeResult
from syncline_server.versions import CEILINGS, FLOORS, WrongVersion, check_versions


class Clock(SystemClock):
    def now_us(self):
        return 1_000_000_000


LEASE = Lease(name="upkeep", holder="n", fence=1, expire_time_us=0)


# -- repeated tasks ----------------------------------------------------------------------------------------


async def test_a_task_that_fails_is_told_counted_and_run_again():
    metrics, runs = Metrics(), []
    enough = asyncio.Event()

    async def run():
        runs.append(1)
        if len(runs) <= 3:
            raise ResourceExhausted("STORE_FULL", "no room")
        if len(runs) == 5:
            raise ZeroDivisionError
        if len(runs) == 6:
            enough.set()

    with structlog.testing.capture_logs() as events:
        task = asyncio.create_task(upkeep.every(upkeep.Task("thing", 0.001, run), metrics))
        await asyncio.wait_for(enough.wait(), 5)
        task.cancel()
    assert [event["event"] for event in events] == ["upkeep.failed", "upkeep.recovered", "upkeep.failed"]
    assert events[0]["reason"] == "STORE_FULL"
    assert metrics.registry.get_sample_value("syncline_background_failures_total", {"task": "thing"}) == 4


async def test_the_lag_of_the_loop_is_measured():
    metrics = Metrics()
    task = asyncio.create_task(upkeep.watch_lag(SystemClock(), metrics))
    async with asyncio.timeout(5):
        while not metrics.registry.get_sample_value("syncline_loop_lag_seconds_count"):
            await asyncio.sleep(0.01)
    task.cancel()


class Datasets:
    """A store of datasets that need purging."""

    def __init__(self, *datasets, tombstones):
        self.datasets = datasets
        self.left = dict(tombstones)
        self.calls = []

    async def list_datasets(self, *, after, limit):
        return [dataset for dataset in self.datasets if dataset.dataset_id > after][:limit]

    async def list_replicas(self, dataset_number, *, reported_since_us):
        return []

    async def purge(self, dataset_number, *, before_us, min_revisions, max_tombstones, not_beyond, lease):
        assert not_beyond is None, "no replica reports"
        assert lease is LEASE
        self.calls.append((dataset_number, before_us, min_revisions))
        if dataset_number not in self.left:
            raise NotFound("DATASET_NOT_FOUND", "gone")
        done = min(max_tombstones, self.left[dataset_number])
        self.left[dataset_number] -= done
        return PurgeResult(purge_revision=1, tombstones=done, more=self.left[dataset_number] > 0)


def dataset(number, revision, **retention):
    return Dataset(
        number=number,
        dataset_id=f"d{number:03}",
        incarnation=bytes(16),
        generation=1,
        identity=Identity(),
        record_scope=RecordScope.SHARED,
        schema="",
        display_name="",
        description="",
        retention=Retention(**retention),
        annotations={},
        create_time_us=0,
        update_time_us=0,
        head=Head(revision=revision),
    )


def purge(store, metrics):
    return upkeep.Purge(
        store,
        Uptake(store, Clock(), expiry_us=1_000_000),
        Clock(),
        metrics,
        min_age_us=400_000_000,
        min_revisions=10,
        max_tombstones=100,
    )


async def test_purge_goes_by_the_retention_of_each_dataset_and_in_small_steps():
    store = Datasets(
        dataset(1, 50),
        dataset(2, 50, min_age_us=0, min_revisions=3),
        dataset(3, 10),  # all its revisions are kept
        dataset(4, 50),  # deleted while the list was read
        tombstones={1: 250, 2: 1, 3: 5},
    )
    metrics = Metrics()
    await purge(store, metrics).run(LEASE)
    assert store.calls == [
        (1, 600_000_000, 10),
        (1, 600_000_000, 10),
        (1, 600_000_000, 10),
        (2, 1_000_000_000, 3),
        (4, 600_000_000, 10),
    ]
    assert metrics.registry.get_sample_value("syncline_purged_tombstones_total") == 251


async def test_one_look_purges_only_so_much_of_one_dataset():
    store = Datasets(dataset(1, 50), tombstones={1: 10**9})
    await purge(store, Metrics()).run(LEASE)
    assert len(store.calls) == 20


async def test_request_ids_are_forgotten_until_none_is_due():
    class Store:
        left = 4_500

        async def forget_requests(self, *, before_us, limit, lease):
            assert lease is LEASE
            assert before_us == Clock().now_us()
            done = min(limit, self.left)
            self.left -= done
            return done

    store, metrics = Store(), Metrics()
    await upkeep.Forgetting(store, Clock(), metrics).run(LEASE)
    assert store.left == 0
    assert metrics.registry.get_sample_value("syncline_forgotten_requests_total") == 4_500


async def test_g18_a_store_that_is_full_is_told_once_and_when_it_is_over():
    class Store:
        full = False

        async def probe(self):
            if self.full:
                raise ResourceExhausted("STORE_FULL", "no room")

    told = []

    async def tell(writable):
        told.append(writable)

    store, metrics = Store(), Metrics()
    probe = upkeep.WriteProbe(store, metrics)
    probe.tell = tell
    with structlog.testing.capture_logs() as events:
        for store.full in (False, True, True, False):
            await probe.run()
            assert metrics.registry.get_sample_value("syncline_writable") == (not store.full)
            assert probe.writable is not store.full
    assert told == [False, True]
    assert [event["event"] for event in events] == ["store.not_writable", "store.writable"]


# -- monitoring --------------------------------------------------------------------------------------------


async def ask(address, request):
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    await writer.wait_closed()
    return answer.decode()


async def test_monitoring_answers_two_questions_and_nothing_else():
    writable = True
    async with monitoring_server("127.0.0.1", 0, Metrics(), lambda: writable) as address:
        assert (await ask(address, b"GET /healthz HTTP/1.1\r\n\r\n")).endswith("\r\n\r\nok\n")
        writable = False
        assert (await ask(address, b"GET /healthz?x HTTP/1.1\r\n\r\n")).startswith("HTTP/1.1 503 ")
        metrics = await ask(address, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert "\nsyncline_subscribers 0.0\n" in metrics
        assert not (await ask(address, b"HEAD /metrics HTTP/1.1\r\n\r\n")).partition("\r\n\r\n")[2]
        assert (await ask(address, b"GET /admin.key HTTP/1.1\r\n\r\n")).startswith("HTTP/1.1 404 ")
        assert (await ask(address, b"POST /metrics HTTP/1.1\r\n\r\n")).startswith("HTTP/1.1 405 ")
        assert await ask(address, b"x" * 20_000) == ""
        with pytest.raises(OSError, match="cannot listen"):
            async with monitoring_server("127.0.0.1", int(address.rpartition(":")[2]), Metrics(), bool):
                pass


# -- the log -----------------------------------------------------------------------------------------------


@pytest.fixture
def log_to():
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield _configure
    root.handlers[:], root.level = before[0], before[1]
    structlog.reset_defaults()


def _configure(form):
    stream = io.StringIO()
    configure_logs("info", form, stream)
    return stream


EVIL = "a\nb\r\x1b[31m\u202e\u2028\ud800"


@pytest.mark.parametrize("form", ["json", "text"])
def test_t107_whatever_is_logged_is_one_line_without_disguise(log_to, form):
    stream = log_to(form)
    structlog.get_logger().info("thing.happened", name=EVIL, other=[EVIL], number=3)
    logging.getLogger("library").warning("oh %s", EVIL)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    for character in "\x1b\u202e\u2028\ud800":
        assert character not in stream.getvalue()
    assert "thing.happened" in lines[0]
    if form == "json":
        assert json.loads(lines[0])["number"] == 3


def test_a_traceback_keeps_its_lines_and_none_of_them_looks_like_an_event(log_to):
    stream = log_to("text")
    try:
        raise ValueError("x\nforged")
    except ValueError:
        structlog.get_logger().exception("thing.failed")
    assert re.search(r"^ +ValueError: x$", stream.getvalue(), re.MULTILINE)
    assert not re.search(r"^forged", stream.getvalue(), re.MULTILINE)


def test_t102_a_key_is_cut_to_its_public_part():
    secret = "sl_0123456789ab_" + "S" * 49
    assert printable(f"key {secret}.") == "key sl_0123456789ab_…."


# -- versions ----------------------------------------------------------------------------------------------


def test_t109_the_installed_versions_are_accepted():
    check_versions()


@pytest.mark.parametrize("name", FLOORS)
def test_t109_an_older_library_is_refused_by_name(name):
    @dataclass
    class Versions:
        def __call__(self, asked):
            return "0.0.9" if asked == name else "999" if asked not in CEILINGS else "0.22.1"

    with pytest.raises(WrongVersion, match=rf"{name} 0\.0\.9 \(needs .* or newer\)"):
        check_versions(Versions())


def test_t109_what_is_missing_or_too_new_is_told():
    def version_of(name):
        if name == "jiter":
            raise PackageNotFoundError
        return "999"

    with pytest.raises(WrongVersion, match=r"aiosqlite 999 \(needs one before 0\.23\), .*jiter is missing"):
        check_versions(version_of)


def test_t109_the_floors_are_those_of_the_distribution():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["server"]]
    floors = {
        match[1]: tuple(map(int, match[2].split(".")))
        for match in (re.match(r"([\w-]+)>=([\d.]+)", requirement) for requirement in wanted)
    }
    for name, floor in FLOORS.items():
        assert floors[name] == floor, name
