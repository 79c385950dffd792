"""T101: every method × every role, from the descriptors: a new method without an entry here fails."""

import asyncio

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass
from google.rpc.error_details_pb2 import ErrorInfo

from support.hosted import hosted
from support.wire import Refused, house
from syncline.v1 import (
    catalog_service_pb2,
    dataset_pb2,
    key_pb2,
    producer_service_pb2,
    push_service_pb2,
    record_service_pb2,
    server_service_pb2,
    session_service_pb2,
    source_pb2,
    sync_service_pb2,
)

OWN, OTHER = "datasets/own", "datasets/other"

SERVICES = {
    file.services_by_name[name].full_name: file.services_by_name[name]
    for file in (
        module.DESCRIPTOR
        for module in (
            catalog_service_pb2,
            producer_service_pb2,
            push_service_pb2,
            record_service_pb2,
            server_service_pb2,
            session_service_pb2,
            sync_service_pb2,
        )
    )
    for name in file.services_by_name
}

ACTION = session_service_pb2.SessionAction(upsert=session_service_pb2.UpsertAction())


def requests_for(dataset):
    """A well-formed request of each method, about this dataset, that changes nothing where it is let in."""
    source, key = f"{dataset}/sources/default", "keys/0123456789ab"
    named = {"dataset": dataset}
    return {
        "CreateDataset": {"dataset_id": "new", "validate_only": True},
        "GetDataset": {"name": dataset},
        "ListDatasets": {},
        "UpdateDataset": {"dataset": dataset_pb2.Dataset(name=dataset), "validate_only": True},
        "DeleteDataset": {"name": dataset, "validate_only": True},
        "CreateSource": {"parent": dataset, "source_id": "new", "validate_only": True},
        "GetSource": {"name": source},
        "ListSources": {"parent": dataset},
        "UpdateSource": {"source": source_pb2.Source(name=source), "validate_only": True},
        "DeleteSource": {"name": source, "validate_only": True},
        "CreateKey": {"key": key_pb2.Key(role=1), "validate_only": True},
        "GetKey": {"name": key},
        "ListKeys": {},
        "UpdateKey": {"key": key_pb2.Key(name=key), "validate_only": True},
        "RotateKey": {"name": key, "validate_only": True},
        "DeleteKey": {"name": key, "validate_only": True},
        "Push": {"source": source},
        "DeleteByValues": {"source": source},
        "DeleteByIds": {"source": source},
        "PushStream": {
            "open": push_service_pb2.OpenProducer(source=source, producer_id="p", validate_only=True)
        },
        "GetProducer": {"name": f"{source}/producers/p"},
        "ListProducers": {"parent": source},
        "WatchProducers": named,
        "DeleteProducer": {"name": f"{source}/producers/p"},
        "OpenSession": {"source": source, "mode": 2, "validate_only": True},
        "WriteSession": {"source": source, "session_id": "x", "action": ACTION},
        "StreamSession": {"source": source, "session_id": "x", "action": ACTION, "sequence": 1},
        "CloseSession": {"source": source, "session_id": "x"},
        "GetSession": {"source": source, "session_id": "x"},
        "GetRecord": named | {"record_id": "x"},
        "BatchGetRecords": named | {"record_ids": ["x"]},
        "ListRecords": named,
        "Sync": named,
        "Subscribe": named,
        "UpdateFeed": {"actions": [{"add": named | {"subscription_id": 1}}]},
        "ListHeads": {},
        "GetUptake": named,
        "DeleteReplica": named | {"replica_id": "x", "validate_only": True},
        "DigestRanges": named,
        "GetServerInfo": {},
        "ListNodes": {},
    }


IN = "let in"
OUT = "PERMISSION_DENIED"
DEAD = "SESSION_INVALID"

# What each role gets for (its own dataset, another one). A PUSH key's own source is `default` of its dataset.
ALLOWED = {
    "PUSH": {
        "GetDataset": (IN, OUT),
        "GetSource": (IN, OUT),
        "Push": (IN, OUT),
        "DeleteByValues": (IN, OUT),
        "DeleteByIds": (IN, OUT),
        "PushStream": (IN, OUT),
        "GetProducer": (IN, OUT),
        "ListProducers": (IN, OUT),
        "GetUptake": (IN, OUT),
        "OpenSession": (IN, OUT),
        "WriteSession": (DEAD, OUT),
        "StreamSession": (DEAD, OUT),
        "CloseSession": (DEAD, OUT),
        "GetSession": (DEAD, OUT),
        "GetServerInfo": (IN, IN),
    },
    "READ": {
        "GetDataset": (IN, OUT),
        "ListDatasets": (IN, IN),
        "GetProducer": (IN, OUT),
        "ListProducers": (IN, OUT),
        "WatchProducers": (IN, OUT),
        "GetUptake": (IN, OUT),
        "DigestRanges": (IN, OUT),
        "GetRecord": (IN, OUT),
        "BatchGetRecords": (IN, OUT),
        "ListRecords": (IN, OUT),
        "Sync": (IN, OUT),
        "Subscribe": (IN, OUT),
        "UpdateFeed": (IN, OUT),
        "ListHeads": (IN, IN),
        "GetServerInfo": (IN, IN),
    },
}
SESSION_METHODS = {"WriteSession", "StreamSession", "CloseSession", "GetSession"}

METHODS = [method for service in SERVICES.values() for method in service.methods]


@pytest.fixture
async def keys(tmp_path):
    async with hosted(house(tmp_path)) as running:
        wire = running.wire
        for dataset in ("own", "other"):
            await wire.make_dataset(dataset)
        yield {
            "ADMIN": wire,
            "PUSH": await wire.make_key("PUSH", source=f"{OWN}/sources/default"),
            "READ": await wire.make_key("READ", datasets=["own"]),
            "none": wire.as_key("sl_000000000000_" + "0" * 49),
        }


def reason_of_part(answer):
    """A subscription's own error: the stream goes on."""
    (part,) = sync_service_pb2.UpdateFeedResponse.FromString(answer).parts
    if not part.HasField("error"):
        return IN
    info = ErrorInfo()
    assert part.error.details[0].Unpack(info)
    return info.reason


async def outcome(wire, method, dataset):
    """IN, or the reason of the refusal. NOT_FOUND of a thing inside is as good as let in."""
    request = GetMessageClass(method.input_type)(**requests_for(dataset)[method.name])
    path = f"/{method.containing_service.full_name}/{method.name}"
    kind = ("stream" if method.client_streaming else "unary") + (
        "_stream" if method.server_streaming else "_unary"
    )
    call = getattr(wire.channel, kind)(path, request_serializer=type(request).SerializeToString)
    try:
        if method.server_streaming:
            asked = iter([request]) if method.client_streaming else request
            stream = call(asked, metadata=wire.metadata, timeout=10)
            answer = await stream.read()
            assert answer is not grpc.aio.EOF
            stream.cancel()
            if method.name == "UpdateFeed":
                return reason_of_part(answer)
        else:
            await call(
                iter([request]) if method.client_streaming else request, metadata=wire.metadata, timeout=10
            )
    except grpc.aio.AioRpcError as error:
        refused = Refused(error)
        return IN if refused.code == "NOT_FOUND" else refused.reason
    return IN


def test_every_method_has_a_request_here():
    assert {method.name for method in METHODS} == set(requests_for(OWN))


async def test_t101_every_method_for_every_role(keys):
    wrong = []
    for method in METHODS:
        name = method.name
        expected = {
            "ADMIN": (DEAD, DEAD) if name in SESSION_METHODS else (IN, IN),
            "PUSH": ALLOWED["PUSH"].get(name, (OUT, OUT)),
            "READ": ALLOWED["READ"].get(name, (OUT, OUT)),
            "none": ("KEY_INVALID", "KEY_INVALID"),
        }
        for role, wire in keys.items():
            found = (await outcome(wire, method, OWN), await outcome(wire, method, OTHER))
            if found != expected[role]:
                wrong.append(f"{name} as {role}: {found}, not {expected[role]}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("role", ["PUSH", "READ"])
async def test_t100_absent_and_forbidden_look_the_same(keys, role):
    wire = keys[role]

    async def answer(method, dataset):
        request = GetMessageClass(method.input_type)(**requests_for(dataset)[method.name])
        path = f"/{method.containing_service.full_name}/{method.name}"
        call = wire.channel.unary_unary(path, request_serializer=type(request).SerializeToString)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(request, metadata=wire.metadata, timeout=10)
        refused = Refused(raised.value)
        return (
            refused.code,
            refused.reason,
            refused.message.replace(dataset.partition("/")[2], "X"),
            refused.fields,
        )

    for method in METHODS:
        if method.client_streaming or method.server_streaming:
            continue
        if ALLOWED[role].get(method.name, (OUT, OUT))[1] is OUT:
            assert await answer(method, OTHER) == await answer(method, "datasets/nowhere"), method.name


async def test_a_read_key_lists_what_it_may_read_and_pages_go_on_past_the_rest(keys):
    listed = await keys["READ"].call(
        keys["READ"].catalog.ListDatasets, catalog_service_pb2.ListDatasetsRequest(page_size=1)
    )
    assert (list(listed.datasets), bool(listed.next_page_token)) == ([], True)
    listed = await keys["READ"].call(
        keys["READ"].catalog.ListDatasets,
        catalog_service_pb2.ListDatasetsRequest(page_size=1, page_token=listed.next_page_token),
    )
    assert [dataset.name for dataset in listed.datasets] == [OWN]


async def test_a_push_key_of_a_source_that_was_made_again_is_useless(keys):
    """The new source under the old name is another one."""
    admin, pusher = keys["ADMIN"], keys["PUSH"]
    push = push_service_pb2.PushRequest(source=f"{OWN}/sources/default", records=[b'{"isbn":"1"}'])
    await pusher.call(pusher.push.Push, push)
    await admin.call(
        admin.catalog.DeleteSource,
        catalog_service_pb2.DeleteSourceRequest(name=f"{OWN}/sources/default"),
    )
    await admin.call(
        admin.catalog.CreateSource,
        catalog_service_pb2.CreateSourceRequest(parent=OWN, source_id="default"),
    )
    refused = await pusher.refused(pusher.push.Push, push)
    assert refused.code in {"PERMISSION_DENIED", "UNAUTHENTICATED"}


async def test_g21_a_key_deleted_while_its_stream_is_open(tmp_path):
    """G21 with the real parts: cache of keys, ticker, stream."""
    async with hosted(house(tmp_path, key_check_seconds=0.2)) as running:
        await running.wire.make_dataset("own")
        reader = await running.wire.make_key("READ", datasets=["own"])
        stream = reader.subscribe(sync_service_pb2.SubscribeRequest(dataset=OWN))
        await stream.read()
        await running.wire.call(
            running.wire.catalog.DeleteKey, catalog_service_pb2.DeleteKeyRequest(name=reader.key_name)
        )
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await asyncio.wait_for(stream.read(), 30)
        assert Refused(raised.value).reason == "KEY_INVALID"
