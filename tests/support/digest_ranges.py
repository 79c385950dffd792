"""DigestRanges and BatchGetRecords as a good server answers them, over a dict: ``record_id -> (json, revision)``."""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from support.scripted_server import ScriptedServer
from syncline.names import source_name
from syncline.v1 import record_pb2, record_service_pb2, sync_service_pb2

Content = Mapping[str, tuple[bytes, int]]


def entry(record_id: str, json: bytes, revision: int) -> int:
    inner = blake2b(json, digest_size=16).digest()
    outer = blake2b(record_id.encode() + b"\0" + revision.to_bytes(8, "big") + inner, digest_size=16)
    return int.from_bytes(outer.digest(), "big")


def digest_ranges(content: Content, request: Any, revision: int) -> sync_service_pb2.DigestRangesResponse:
    """What the contract says that the server answers; ids compare as bytes."""
    answer = sync_service_pb2.DigestRangesResponse(revision=revision)
    parts = request.parts or 16
    ordered = sorted(content, key=str.encode)
    for asked in request.ranges or [sync_service_pb2.RecordIdRange()]:
        ids = [
            record_id
            for record_id in ordered
            if record_id.encode() > asked.after.encode()
            and (not asked.through or record_id.encode() <= asked.through.encode())
        ]
        number = 0
        if len(ids) <= parts:
            for record_id in ids:
                add_part(answer, content, [record_id], record_id)
            number = len(ids)
            if not ids or ids[-1] != asked.through:
                add_part(answer, content, [], asked.through)
                number += 1
        else:
            for i in range(parts):
                part = ids[len(ids) * i // parts : len(ids) * (i + 1) // parts]
                add_part(answer, content, part, asked.through if i == parts - 1 else part[-1])
            number = parts
        answer.part_counts.append(number)
    return answer


def add_part(answer: Any, content: Content, record_ids: list[str], through: str) -> None:
    total = sum(entry(record_id, *content[record_id]) for record_id in record_ids) % (1 << 128)
    answer.through.append(through)
    answer.record_counts.append(len(record_ids))
    answer.digests.append(total.to_bytes(16, "big"))


def batch_get(content: Content, request: Any, revision: int) -> record_service_pb2.BatchGetRecordsResponse:
    answer = record_service_pb2.BatchGetRecordsResponse(revision=revision)
    for record_id in request.record_ids:
        if record_id in content:
            data, made = content[record_id]
            answer.records.append(
                record_pb2.Record(
                    record_id=record_id,
                    source=source_name("books", "default"),
                    data=data,
                    revision=made,
                    create_time=Timestamp(seconds=1),
                    update_time=Timestamp(seconds=made),
                )
            )
        else:
            answer.missing_record_ids.append(record_id)
    return answer


def serve(scripted: ScriptedServer, content: Content, revision: int) -> None:
    """Answer both methods with this content."""
    scripted.script("DigestRanges", lambda request: digest_ranges(content, request, revision))
    scripted.script("BatchGetRecords", lambda request: batch_get(content, request, revision))
