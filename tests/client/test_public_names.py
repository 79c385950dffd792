"""What users see: names, types, silence."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

import syncline

ROOT = Path(__file__).parents[2]

NAMES = """
Aborted AlreadyExists Change ChangeBatch ChangeFeed ChangeReason Checkpoint Client ConditionFailed Copy
CopyDiverged Dataset DatasetHead DatasetInfo DeadlineExceeded DecodeError Delete Digest EncodeError EtagMismatch
Event FailedPrecondition FeedBroken FeedError FeedOptions Identity IdentityInUse IfAbsent IfRevision
InvalidArgument InvalidRecords KeyInfo LimitExceeded Limits LoadResult MassDeleteRefused Mirror Node
NotAuthenticated NotFound NotOffered OutOfRange OutboxFull OutcomeUnknown Overloaded PermissionDenied Producer ProducerError
ProducerFenced ProducerForgotten ProducerInfo ProducerStats ProducerWatch PushResult Put ReadingsLeft Record
RecordResult RecordStatus RefusedReading RefusedReadings Rejected Remove Repair Replica ReplicaChanges
ReplicaError ReplicaProof ReplicaReadOnly ReplicaState ReplicaStopped ReplicaUnusable ReplicaUptake Reset
ResetReason Retention RetryPolicy SchemaInvalid ServerError ServerInfo Session SessionBroken SessionConflict
SessionInfo SessionInvalid SessionResult SourceDisabled SourceInfo SpoolUnusable StaleData SyncPage
SynclineError Tls TokenInvalid Unavailable UnknownEvent Uptake Violation append by_content by_key connect key_of
""".split()  # noqa: SIM905 - a list to read


def test_public_names_are_these() -> None:
    """A name that is added or dropped is a decision: write it here, and into the changelog."""
    assert syncline.__all__ == NAMES
    assert sorted(NAMES) == NAMES
    for name in NAMES:
        assert getattr(syncline, name).__doc__ or name in ("Change", "Event")


def test_every_error_is_public() -> None:
    public = {
        name
        for name, value in vars(syncline.errors).items()
        if isinstance(value, type)
        and issubclass(value, Exception)
        and value.__module__ == syncline.errors.__name__
    }

    assert public <= set(syncline.__all__)


def test_every_public_method_says_what_it_does() -> None:
    for kind in (
        syncline.Client,
        syncline.Dataset,
        syncline.Session,
        syncline.ChangeFeed,
        syncline.Copy,
        syncline.Replica,
    ):
        for name, method in vars(kind).items():
            if not name.startswith("_") and callable(method):
                assert method.__doc__, f"{kind.__name__}.{name}"


def test_types_as_users_see_them() -> None:
    result = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--no-incremental", "--config-file", os.devnull),
            str(ROOT / "tests" / "typing" / "api.py"),
        ],
        env=os.environ | {"MYPYPATH": str(ROOT / "client")},
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )

    assert result.returncode == 0, result.stdout + result.stderr


test_types_as_users_see_them = pytest.mark.timeout(180)(test_types_as_users_see_them)


def test_quiet_unless_asked() -> None:
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("syncline").handlers)
    assert not logging.getLogger("syncline").propagate or not logging.getLogger("syncline").level


def test_import_brings_no_server() -> None:
    script = "import sys, syncline; print([m for m in sys.modules if m.startswith(('syncline_server', 'pydantic', 'rich', 'typer'))])"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert said.stdout.strip() == "[]"


def test_import_brings_little() -> None:
    """The server takes ``syncline.names`` at each start; the rest comes when it is asked for, and then whole."""
    script = """
import sys, syncline, syncline.names
from syncline import names
assert "grpc" not in sys.modules and "syncline.client" not in sys.modules
assert "connect" in dir(syncline) and "errors" in dir(syncline)
from syncline import *
assert connect is syncline.connect and syncline.errors.NotFound is NotFound
assert not hasattr(syncline, "conect") and not hasattr(syncline, "__wrapped__")
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("module", ["_wire", "client", "feed", "mirror", "producer", "replica", "session"])
def test_every_module_can_be_the_first(module: str) -> None:
    subprocess.run([sys.executable, "-c", f"import syncline.{module}"], check=True)
