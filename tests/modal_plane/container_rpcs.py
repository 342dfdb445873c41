# ruff: noqa: N802 - the methods are named as the RPCs are
"""The RPCs of Modal's container entrypoint, for one container at a time."""

from __future__ import annotations

import asyncio
import pickle
import time
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from grpclib import GRPCError, Status
from modal_proto import api_pb2
from modal_proto.api_grpc import ModalClientBase

if TYPE_CHECKING:
    from grpclib.server import Stream

    from tests.modal_plane.blobs import BlobServer
    from tests.modal_plane.store import Store, Task

_Request = TypeVar("_Request", bound=Message)
_Response = TypeVar("_Response", bound=Message)

_INPUT_WAIT_S = 5.0
_POLL_S = 0.02


class ContainerRPCs(ModalClientBase):
    """Keeps requests, and answers a container.

    Args:
        store: what is known, and what tests read.
        blobs: where large files go.
    """

    def __init__(self, store: Store, blobs: BlobServer) -> None:
        self.store = store
        self.blobs = blobs

    async def _receive(self, stream: Stream[_Request, _Response]) -> _Request:
        request = await stream.recv_message()
        if request is None:
            raise GRPCError(Status.INVALID_ARGUMENT, "no message")
        self.store.requests.append(request)
        return request

    @property
    def _task(self) -> Task:
        """The running container: the latest one, because the tests run one at a time."""
        return list(self.store.tasks.values())[-1]

    async def ContainerHello(self, stream: Stream[Empty, Empty]) -> None:
        await self._receive(stream)
        await stream.send_message(Empty())

    async def ContainerHeartbeat(
        self, stream: Stream[api_pb2.ContainerHeartbeatRequest, api_pb2.ContainerHeartbeatResponse]
    ) -> None:
        await self._receive(stream)
        await stream.send_message(api_pb2.ContainerHeartbeatResponse())

    async def ContainerCheckpoint(self, stream: Stream[api_pb2.ContainerCheckpointRequest, Empty]) -> None:
        await self._receive(stream)
        await stream.send_message(Empty())
        self._task.snapshots += 1

    async def ContainerStop(self, stream: Stream[api_pb2.ContainerStopRequest, api_pb2.ContainerStopResponse]) -> None:
        request = await self._receive(stream)
        self._task.stops += 1
        self._task.kill = request.graceful
        await stream.send_message(api_pb2.ContainerStopResponse())

    async def TaskResult(self, stream: Stream[api_pb2.TaskResultRequest, Empty]) -> None:
        request = await self._receive(stream)
        self._task.failure = request.result
        await stream.send_message(Empty())

    async def FunctionGetInputs(
        self, stream: Stream[api_pb2.FunctionGetInputsRequest, api_pb2.FunctionGetInputsResponse]
    ) -> None:
        await self._receive(stream)
        task = self._task
        task.ready = True
        deadline = time.monotonic() + _INPUT_WAIT_S
        while not task.calls and not task.kill and time.monotonic() < deadline:  # noqa: ASYNC110 - set by another thread
            await asyncio.sleep(_POLL_S)
        response = api_pb2.FunctionGetInputsResponse()
        if task.calls:
            task.calls -= 1
            call = api_pb2.FunctionInput(
                args=pickle.dumps(((), {})), data_format=api_pb2.DATA_FORMAT_PICKLE, final_input=task.calls == 0
            )
            input_id, call_id = self.store.new_id("in"), self.store.new_id("fc")
            response.inputs.append(
                api_pb2.FunctionGetInputsItem(input_id=input_id, function_call_id=call_id, input=call)
            )
        elif task.kill:
            response.inputs.append(api_pb2.FunctionGetInputsItem(kill_switch=True))
        await stream.send_message(response)

    async def FunctionPutOutputs(self, stream: Stream[api_pb2.FunctionPutOutputsRequest, Empty]) -> None:
        request = await self._receive(stream)
        self._task.outputs.extend(item.result for item in request.outputs)
        await stream.send_message(Empty())

    async def FunctionGetDynamicConcurrency(
        self,
        stream: Stream[api_pb2.FunctionGetDynamicConcurrencyRequest, api_pb2.FunctionGetDynamicConcurrencyResponse],
    ) -> None:
        request = await self._receive(stream)
        await stream.send_message(api_pb2.FunctionGetDynamicConcurrencyResponse(concurrency=request.target_concurrency))

    async def VolumeCommit(self, stream: Stream[api_pb2.VolumeCommitRequest, api_pb2.VolumeCommitResponse]) -> None:
        request = await self._receive(stream)
        names = {volume_id: name for name, volume_id in self.store.volumes.items()}
        self.store.commits.append(names[request.volume_id])
        await stream.send_message(api_pb2.VolumeCommitResponse())

    async def VolumeReload(self, stream: Stream[api_pb2.VolumeReloadRequest, Empty]) -> None:
        await self._receive(stream)
        await stream.send_message(Empty())
