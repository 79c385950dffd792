"""Changes as lines: of JSON for programs, of text for people."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import msgspec

from syncline.cli.render import Output, count, escape, plain, shorten, width

if TYPE_CHECKING:
    from syncline import ChangeBatch, Checkpoint, Reset

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_PUT, _REMOVE = 1, 3  # as in syncline.events
_REASONS: Final = {1: "api", 2: "session", 3: "replace", 4: "source", 5: "expired"}
_ID_COLUMNS: Final = 24
"""Ids are padded to this width, so that the data of most lines stands in one column."""


class ChangeLine(msgspec.Struct, omit_defaults=True):
    """One line of `sync` and `watch` for one change. ``data`` is there for puts only."""

    record_id: str
    revision: int
    commit_time: str
    reason: str
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class PutLine(ChangeLine, tag_field="kind", tag="put"):
    """The record has this content."""


class DeleteLine(ChangeLine, tag_field="kind", tag="delete"):
    """The record is gone."""


class RemoveLine(ChangeLine, tag_field="kind", tag="remove"):
    """The record does not match the filter (any more)."""


class CheckpointLine(msgspec.Struct, tag_field="kind", tag="checkpoint"):
    """A copy that took in every line so far equals the dataset."""

    revision: int
    record_count: int
    """-1 where the server keeps no account of the filter; then there is no digest."""
    digest: str
    commit_time: str | None


class ResetLine(msgspec.Struct, tag_field="kind", tag="reset"):
    """What follows is a complete new copy; what was before is void at the next checkpoint."""

    reason: str
    message: str


@lru_cache(maxsize=64)
def rfc3339(time_us: int) -> str:
    """Microseconds since 1970 as RFC 3339 in UTC."""
    return (_EPOCH + timedelta(microseconds=time_us)).isoformat().replace("+00:00", "Z")


@lru_cache(maxsize=64)
def clock(time_us: int) -> str:
    """Microseconds since 1970 as local time of day."""
    moment = (_EPOCH + timedelta(microseconds=time_us)).astimezone()
    return f"{moment:%H:%M:%S}.{moment.microsecond // 1000:03}"


def json_lines(batch: "ChangeBatch[Any]") -> Iterator[bytes]:
    """The changes of a batch, each as JSON text."""
    encode = msgspec.json.Encoder().encode
    kinds, reasons = batch.kinds, batch.reasons
    for i, record_id in enumerate(batch.record_ids):
        common = (record_id, batch.revisions[i], rfc3339(batch.commit_times_us[i]), _reason(reasons, i))
        if kinds and kinds[i] != _PUT:
            yield encode((RemoveLine if kinds[i] == _REMOVE else DeleteLine)(*common))
        else:
            yield encode(PutLine(*common, msgspec.Raw(batch.json[i])))


def checkpoint_line(checkpoint: "Checkpoint") -> CheckpointLine:
    """A checkpoint for JSON output."""
    return CheckpointLine(
        checkpoint.revision,
        checkpoint.record_count,
        checkpoint.digest.hex(),
        None if checkpoint.commit_time is None else plain(checkpoint.commit_time),
    )


def records_at(checkpoint: "Checkpoint") -> str:
    """How many records a copy has at a checkpoint, for people."""
    return count(checkpoint.record_count, "record") if checkpoint.record_count >= 0 else "records not counted"


def reset_line(reset: "Reset") -> ResetLine:
    """A reset for JSON output."""
    return ResetLine(reset.reason.name, reset.message)


def text_lines(batch: "ChangeBatch[Any]", output: Output) -> Iterator[str]:
    """The changes of a batch for people: time, kind, id, data, one line each, as wide as the terminal."""
    columns = output.columns
    put = output.paint("put   ", "green")
    delete = output.paint("delete", "red")
    remove = output.paint("remove", "red")
    for i, record_id in enumerate(batch.record_ids):
        kind = batch.kinds[i] if batch.kinds else _PUT
        gone = kind != _PUT
        shown_id = shorten(escape(record_id), max(_ID_COLUMNS, columns // 2))
        shown_id += " " * (_ID_COLUMNS - width(shown_id))
        detail = _reason(batch.reasons, i) if gone else escape(batch.json[i].decode(errors="replace"))
        room = max(8, columns - 13 - 7 - width(shown_id) - 2)
        time = output.paint(clock(batch.commit_times_us[i]), "dim")
        yield (
            f"{time} {put if not gone else remove if kind == _REMOVE else delete} {output.paint(shown_id, 'bold')} "
            f"{output.paint(shorten(detail, room), *(('dim',) if gone else ()))}"
        )


def _reason(reasons: list[int], position: int) -> str:
    return _REASONS.get(reasons[position], "other") if reasons else "api"
