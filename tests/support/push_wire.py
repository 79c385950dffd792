"""A PushStream by hand, message by message, without the SDK in between."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc

from support.wire import TIMEOUT, Refused, Wire
from syncline.v1 import catalog_service_pb2, dataset_pb2
from syncline.v1 import push_service_pb2 as pb

SOURCE = "datasets/books/sources/default"


class PushCall:
    """An open stream: what the server said in ``opened``, and one message at a time."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self.opened: pb.Opened

    async def open(self, producer_id: str, **how: Any) -> "PushCall":
        """Send the first message, and take the answer."""
        asked = pb.OpenProducer(**({"source": SOURCE, "producer_id": producer_id} | how))
        await self._call.write(pb.PushStreamRequest(open=asked))
        self.opened = (await self.read()).opened
        return self

    async def send(self, first_sequence: int, records: Sequence[bytes]) -> None:
        """Send readings."""
        readings = pb.Readings(first_sequence=first_sequence, records=records)
        await self.send_message(pb.PushStreamRequest(readings=readings))

    async def send_message(self, message: pb.PushStreamRequest) -> None:
        """Send any message."""
        await asyncio.wait_for(self._call.write(message), TIMEOUT)

    async def read(self) -> pb.PushStreamResponse:
        """The next message. Raises AioRpcError when the stream ended instead."""
        answer = await asyncio.wait_for(self._call.read(), TIMEOUT)
        if answer is grpc.aio.EOF:
            code, details = await self._call.code(), await self._call.details()
            raise grpc.aio.AioRpcError(
                code,
                await self._call.initial_metadata(),
                await self._call.trailing_metadata(),
                details=details,
            )
        return answer

    async def ack(self) -> pb.ReadingsAck:
        """The next message, which must be an acknowledgement."""
        answer = await self.read()
        assert answer.HasField("ack"), answer
        return answer.ack

    async def acked(self, sequence: int) -> pb.ReadingsAck:
        """Acknowledgements up to the one of this number."""
        while True:
            ack = await self.ack()
            if ack.last_sequence >= sequence:
                return ack

    async def control(self) -> pb.ProducerControl:
        """The next message, which must be a control."""
        answer = await self.read()
        assert answer.HasField("control"), answer
        return answer.control

    async def end(self) -> str:
        """Send nothing more; the code with which the stream ends, whatever still comes."""
        await self._call.done_writing()
        try:
            while True:
                await self.read()
        except grpc.aio.AioRpcError as error:
            return error.code().name

    async def refused(self) -> Refused:
        """How the stream ends, whatever still comes."""
        try:
            while True:
                await self.read()
        except grpc.aio.AioRpcError as error:
            return Refused(error)

    def cancel(self) -> None:
        """Hang up."""
        self._call.cancel()


async def make_log(wire: Wire, dataset_id: str = "log") -> str:
    """Make a dataset in which every reading is a record of its own, so that counting finds what came twice."""
    identity = dataset_pb2.Identity(kind=dataset_pb2.Identity.KIND_APPEND)
    request = catalog_service_pb2.CreateDatasetRequest(
        dataset_id=dataset_id, dataset=dataset_pb2.Dataset(identity=identity)
    )
    await wire.call(wire.catalog.CreateDataset, request)
    return f"datasets/{dataset_id}/sources/default"


@asynccontextmanager
async def lodging(server: Any) -> AsyncIterator[Wire]:
    """Stubs of a server that others use too, with the dataset ``books`` in it while the block lasts."""
    async with grpc.aio.insecure_channel(server.address) as channel:
        wire = Wire(channel, server.key)
        await wire.make_dataset("books")
        try:
            yield wire
        finally:
            listed = await wire.call(wire.catalog.ListDatasets, catalog_service_pb2.ListDatasetsRequest())
            for dataset in listed.datasets:
                request = catalog_service_pb2.DeleteDatasetRequest(name=dataset.name)
                await wire.call(wire.catalog.DeleteDataset, request)


@asynccontextmanager
async def push_call(wire: Wire) -> AsyncIterator[PushCall]:
    """A stream while the block lasts."""
    call = wire.push.PushStream(metadata=wire.metadata)
    try:
        yield PushCall(call)
    finally:
        call.cancel()
