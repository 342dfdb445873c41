# ruff: noqa: N802 - the methods are named as the RPCs are
"""The RPCs that `modal deploy`, `modal run` and a look-up of a deployed class need, on grpclib.

The methods fill in what the 1.6.4 client reads from each answer. Any other RPC is noted and answered with UNIMPLEMENTED,
so a test that needs more than this plane offers fails with the RPC's name.
"""

from __future__ import annotations

import asyncio
import hashlib
import pickle
import time
from typing import TYPE_CHECKING, cast

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from tests.modal_plane.log_rpcs import LogRPCs
from tests.modal_plane.store import ENVIRONMENT, App, Outcome, StoredFunction, content_id

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from google.protobuf.message import Message
    from grpclib.server import Stream

    from tests.modal_plane.blobs import BlobServer
    from tests.modal_plane.store import Store

BUILDER_VERSION = "2025.06"
_LOG_POLL_S = 30.0


class ControlPlane(LogRPCs):
    """Answers the real client from a `Store`, and keeps every request there."""

    # --- session ------------------------------------------------------------------------------------------------------

    async def ClientHello(self, stream: Stream[Empty, api_pb2.ClientHelloResponse]) -> None:
        await self._receive(stream)
        await stream.send_message(api_pb2.ClientHelloResponse(image_builder_version=BUILDER_VERSION))

    async def EnvironmentGetOrCreate(
        self, stream: Stream[api_pb2.EnvironmentGetOrCreateRequest, api_pb2.EnvironmentGetOrCreateResponse]
    ) -> None:
        await self._receive(stream)
        settings = api_pb2.EnvironmentSettings(image_builder_version=BUILDER_VERSION)
        metadata = api_pb2.EnvironmentMetadata(name=ENVIRONMENT, settings=settings)
        await stream.send_message(
            api_pb2.EnvironmentGetOrCreateResponse(environment_id="en-0000000000000000000001", metadata=metadata)
        )

    # --- apps ---------------------------------------------------------------------------------------------------------

    async def AppGetByDeploymentName(
        self, stream: Stream[api_pb2.AppGetByDeploymentNameRequest, api_pb2.AppGetByDeploymentNameResponse]
    ) -> None:
        request = await self._receive(stream)
        app = self.store.deployed(request.name)
        await stream.send_message(api_pb2.AppGetByDeploymentNameResponse(app_id=app.app_id if app else ""))

    async def AppGetLayout(self, stream: Stream[api_pb2.AppGetLayoutRequest, api_pb2.AppGetLayoutResponse]) -> None:
        request = await self._receive(stream)
        await stream.send_message(api_pb2.AppGetLayoutResponse(app_layout=self.store.layout(request.app_id)))

    async def AppCreate(self, stream: Stream[api_pb2.AppCreateRequest, api_pb2.AppCreateResponse]) -> None:
        request = await self._receive(stream)
        app = App(self.store.new_id("ap"), request.description, state=request.app_state, disconnected=asyncio.Event())
        self.store.apps[app.app_id] = app
        url = f"https://modal.invalid/apps/{app.app_id}"
        await stream.send_message(api_pb2.AppCreateResponse(app_id=app.app_id, app_page_url=url, app_logs_url=url))

    async def AppHeartbeat(self, stream: Stream[api_pb2.AppHeartbeatRequest, Empty]) -> None:
        await self._receive(stream)
        await stream.send_message(Empty())

    async def AppPublish(self, stream: Stream[api_pb2.AppPublishRequest, api_pb2.AppPublishResponse]) -> None:
        request = await self._receive(stream)
        app = self.store.apps[request.app_id]
        app.functions, app.classes = dict(request.function_ids), dict(request.class_ids)
        app.description = request.name or app.description
        app.state = request.app_state
        app.publishes += 1
        url = f"https://modal.invalid/apps/{app.app_id}"
        await stream.send_message(api_pb2.AppPublishResponse(url=url, deployed_at=time.time()))

    async def AppClientDisconnect(self, stream: Stream[api_pb2.AppClientDisconnectRequest, Empty]) -> None:
        request = await self._receive(stream)
        app = self.store.apps[request.app_id]
        if app.state != api_pb2.APP_STATE_DEPLOYED:
            app.state = api_pb2.APP_STATE_STOPPED
        if app.disconnected:
            app.disconnected.set()
        await stream.send_message(Empty())

    async def AppGetLogs(self, stream: Stream[api_pb2.AppGetLogsRequest, api_pb2.TaskLogsBatch]) -> None:
        request = await self._receive(stream)
        app = self.store.apps[request.app_id]
        try:
            if app.disconnected:
                await asyncio.wait_for(app.disconnected.wait(), _LOG_POLL_S)
        except TimeoutError:
            return
        await stream.send_message(api_pb2.TaskLogsBatch(app_done=True))

    # --- files --------------------------------------------------------------------------------------------------------

    async def BlobCreate(self, stream: Stream[api_pb2.BlobCreateRequest, api_pb2.BlobCreateResponse]) -> None:
        await self._receive(stream)
        blob_id = self.store.new_id("bl")
        urls = api_pb2.UploadUrlList(items=[self.blobs.url(blob_id)])
        await stream.send_message(api_pb2.BlobCreateResponse(blob_id=blob_id, blob_ids=[blob_id], upload_urls=urls))

    async def BlobGet(self, stream: Stream[api_pb2.BlobGetRequest, api_pb2.BlobGetResponse]) -> None:
        request = await self._receive(stream)
        await stream.send_message(api_pb2.BlobGetResponse(download_url=self.blobs.url(request.blob_id)))

    async def MountBatchedCheckExistence(
        self, stream: Stream[api_pb2.MountBatchedCheckExistenceRequest, api_pb2.MountBatchedCheckExistenceResponse]
    ) -> None:
        request = await self._receive(stream)
        missing = [digest for digest in request.sha256_hex_hashes if digest not in self.store.files]
        await stream.send_message(api_pb2.MountBatchedCheckExistenceResponse(missing_sha256_hex_hashes=missing))

    async def MountPutFile(self, stream: Stream[api_pb2.MountPutFileRequest, api_pb2.MountPutFileResponse]) -> None:
        request = await self._receive(stream)
        data = self.store.blobs[request.data_blob_id] if request.data_blob_id else request.data
        if hashlib.sha256(data).hexdigest() != request.sha256_hex:
            raise GRPCError(Status.INVALID_ARGUMENT, "the content has another SHA-256 than announced")
        self.store.files[request.sha256_hex] = data
        await stream.send_message(api_pb2.MountPutFileResponse(exists=True))

    async def MountGetOrCreate(
        self, stream: Stream[api_pb2.MountGetOrCreateRequest, api_pb2.MountGetOrCreateResponse]
    ) -> None:
        request = await self._receive(stream)
        files = sorted(request.files, key=lambda file: file.filename)
        if request.deployment_name:
            content = request.deployment_name.encode()  # a global mount, such as the client's own dependencies
        else:
            content = b"".join(file.SerializeToString(deterministic=True) for file in files)
        mount_id = content_id("mo", content)
        self.store.mounts[mount_id] = files
        self.store.mount_names[mount_id] = request.deployment_name
        metadata = api_pb2.MountHandleMetadata(content_checksum_sha256_hex=hashlib.sha256(content).hexdigest())
        await stream.send_message(api_pb2.MountGetOrCreateResponse(mount_id=mount_id, handle_metadata=metadata))

    # --- volumes and secrets ------------------------------------------------------------------------------------------

    async def VolumeGetOrCreate(
        self, stream: Stream[api_pb2.VolumeGetOrCreateRequest, api_pb2.VolumeGetOrCreateResponse]
    ) -> None:
        request = await self._receive(stream)
        name = request.deployment_name
        if name not in self.store.volumes:
            if request.object_creation_type != api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING:
                raise GRPCError(Status.NOT_FOUND, f"Volume '{name}' not found in environment '{ENVIRONMENT}'")
            self.store.volumes[name] = self.store.new_id("vo")
        metadata = api_pb2.VolumeMetadata(name=name, version=api_pb2.VOLUME_FS_VERSION_V1)
        await stream.send_message(
            api_pb2.VolumeGetOrCreateResponse(volume_id=self.store.volumes[name], metadata=metadata)
        )

    async def SecretGetOrCreate(
        self, stream: Stream[api_pb2.SecretGetOrCreateRequest, api_pb2.SecretGetOrCreateResponse]
    ) -> None:
        request = await self._receive(stream)
        name = request.deployment_name
        if name:
            if name not in self.store.secrets:
                raise GRPCError(Status.NOT_FOUND, f"Secret '{name}' not found in environment '{ENVIRONMENT}'")
            secret_id = self.store.secrets[name]
        else:
            values = dict(request.env_dict)
            secret_id = content_id("st", repr(sorted(values.items())).encode())
            self.store.anonymous_secrets[secret_id] = values
        metadata = api_pb2.SecretMetadata(name=name)
        await stream.send_message(api_pb2.SecretGetOrCreateResponse(secret_id=secret_id, metadata=metadata))

    # --- images -------------------------------------------------------------------------------------------------------

    async def ImageGetOrCreate(
        self, stream: Stream[api_pb2.ImageGetOrCreateRequest, api_pb2.ImageGetOrCreateResponse]
    ) -> None:
        request = await self._receive(stream)
        image_id = content_id("im", request.image.SerializeToString(deterministic=True))
        self.store.images[image_id] = request.image
        response = api_pb2.ImageGetOrCreateResponse(image_id=image_id)
        if image_id in self.store.built:
            response.result.status = api_pb2.GenericResult.GENERIC_STATUS_SUCCESS
            response.metadata.CopyFrom(_IMAGE_METADATA)
        await stream.send_message(response)

    async def ImageJoinStreaming(
        self, stream: Stream[api_pb2.ImageJoinStreamingRequest, api_pb2.ImageJoinStreamingResponse]
    ) -> None:
        request = await self._receive(stream)
        commands = self.store.images[request.image_id].dockerfile_commands
        log = api_pb2.TaskLogs(data="".join(f"=> {command}\n" for command in commands))
        await stream.send_message(api_pb2.ImageJoinStreamingResponse(task_logs=[log], entry_id="1-0"))
        result = api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_SUCCESS)
        failing = self.store.failing_command
        if failing is not None and any(failing in command for command in commands):
            result = api_pb2.GenericResult(
                status=api_pb2.GenericResult.GENERIC_STATUS_FAILURE, exception=f"a RUN with {failing!r} failed"
            )
        else:
            self.store.built.append(request.image_id)
        await stream.send_message(
            api_pb2.ImageJoinStreamingResponse(result=result, metadata=_IMAGE_METADATA, entry_id="2-0", eof=True)
        )

    # --- functions and classes ----------------------------------------------------------------------------------------

    async def FunctionPrecreate(
        self, stream: Stream[api_pb2.FunctionPrecreateRequest, api_pb2.FunctionPrecreateResponse]
    ) -> None:
        request = await self._receive(stream)
        function_id = request.existing_function_id or self.store.new_id("fu")
        function = StoredFunction(function_id, request.app_id, request.function_name)
        self.store.functions[function_id] = function
        function.handle.function_name = request.function_name
        function.handle.function_type = request.function_type
        function.handle.app_id = request.app_id
        function.handle.supported_input_formats.extend(request.supported_input_formats)
        function.handle.supported_output_formats.extend(request.supported_output_formats)
        for name, method in request.method_definitions.items():
            handle = function.handle.method_handle_metadata[name]
            handle.function_name = method.function_name
            handle.is_method = True
            handle.use_method_name = name
            handle.function_type = method.function_type
            handle.web_url = self._web_url(request.app_id, method.function_name, method.webhook_config)
        function.handle.web_url = self._web_url(request.app_id, request.function_name, request.webhook_config)
        await stream.send_message(
            api_pb2.FunctionPrecreateResponse(function_id=function_id, handle_metadata=function.handle)
        )

    async def FunctionCreate(
        self, stream: Stream[api_pb2.FunctionCreateRequest, api_pb2.FunctionCreateResponse]
    ) -> None:
        request = await self._receive(stream)
        function = self.store.functions[request.existing_function_id]
        function.definition = request.function
        function.handle.definition_id = f"de-{function.function_id.removeprefix('fu-')}"
        function.handle.class_parameter_info.CopyFrom(request.function.class_parameter_info)
        answer = api_pb2.FunctionCreateResponse(
            function_id=function.function_id, handle_metadata=function.handle, function=request.function
        )
        answer.function_data.CopyFrom(_as_data(request.function))
        answer.function.web_url = function.handle.web_url
        for name, method in answer.function.method_definitions.items():
            method.web_url = function.handle.method_handle_metadata[name].web_url
        await stream.send_message(answer)

    async def ClassCreate(self, stream: Stream[api_pb2.ClassCreateRequest, api_pb2.ClassCreateResponse]) -> None:
        request = await self._receive(stream)
        class_id = request.existing_class_id or self.store.new_id("cs")
        await stream.send_message(
            api_pb2.ClassCreateResponse(class_id=class_id, handle_metadata=api_pb2.ClassHandleMetadata())
        )

    async def ClassGet(self, stream: Stream[api_pb2.ClassGetRequest, api_pb2.ClassGetResponse]) -> None:
        request = await self._receive(stream)
        app = self._deployed(request.app_name)
        if request.object_tag not in app.classes:
            raise GRPCError(Status.NOT_FOUND, f"No class '{request.object_tag}' in app '{request.app_name}'")
        await stream.send_message(
            api_pb2.ClassGetResponse(
                class_id=app.classes[request.object_tag], handle_metadata=api_pb2.ClassHandleMetadata()
            )
        )

    async def FunctionGet(self, stream: Stream[api_pb2.FunctionGetRequest, api_pb2.FunctionGetResponse]) -> None:
        request = await self._receive(stream)
        app = self._deployed(request.app_name)
        if request.object_tag not in app.functions:
            raise GRPCError(Status.NOT_FOUND, f"No function '{request.object_tag}' in app '{request.app_name}'")
        function = self.store.functions[app.functions[request.object_tag]]
        await stream.send_message(
            api_pb2.FunctionGetResponse(
                function_id=function.function_id,
                handle_metadata=function.handle,
                function=_as_data(function.definition),
            )
        )

    async def FunctionMap(self, stream: Stream[api_pb2.FunctionMapRequest, api_pb2.FunctionMapResponse]) -> None:
        request = await self._receive(stream)
        call_id = self.store.new_id("fc")
        self.store.calls[call_id] = self.store.functions[request.function_id].name
        inputs = [
            api_pb2.FunctionPutInputsResponseItem(idx=item.idx, input_id=self.store.new_id("in"))
            for item in request.pipelined_inputs
        ]
        await stream.send_message(api_pb2.FunctionMapResponse(function_call_id=call_id, pipelined_inputs=inputs))

    async def FunctionGetOutputs(
        self, stream: Stream[api_pb2.FunctionGetOutputsRequest, api_pb2.FunctionGetOutputsResponse]
    ) -> None:
        request = await self._receive(stream)
        name = self.store.calls[request.function_call_id]
        outcome = self.store.outcomes.get(name, Outcome(failure=f"{name} needs a container, and this plane has none"))
        result = api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_SUCCESS)
        if outcome.failure is None:
            result.data = pickle.dumps(outcome.value)
        else:
            result.status = api_pb2.GenericResult.GENERIC_STATUS_FAILURE
            result.exception = outcome.failure
        item = api_pb2.FunctionGetOutputsItem(result=result, idx=0, data_format=api_pb2.DATA_FORMAT_PICKLE)
        await stream.send_message(api_pb2.FunctionGetOutputsResponse(idxs=[0], outputs=[item], last_entry_id="1-0"))

    def _deployed(self, name: str) -> App:
        app = self.store.deployed(name)
        if app is None:
            raise GRPCError(Status.NOT_FOUND, f"App '{name}' not found in environment '{ENVIRONMENT}'")
        return app

    def _web_url(self, app_id: str, function_name: str, config: api_pb2.WebhookConfig) -> str:
        if config.type == api_pb2.WEBHOOK_TYPE_UNSPECIFIED:
            return ""
        app = self.store.apps[app_id]
        suffix = "-dev" if app.state == api_pb2.APP_STATE_EPHEMERAL else ""
        label = f"{app.description}-{function_name}{suffix}".replace(".", "-").replace("_", "-").lower()
        return self.store.web_url or f"https://workspace--{label}.modal.invalid"


_IMAGE_METADATA = api_pb2.ImageMetadata(python_version_info="3.12.3", image_builder_version=BUILDER_VERSION)


def _as_data(function: api_pb2.Function) -> api_pb2.FunctionData:
    """The function in the form for a single kind of machine, which the client expects."""
    data = api_pb2.FunctionData(module_name=function.module_name, function_name=function.function_name)
    data.ranked_functions.append(api_pb2.FunctionData.RankedFunction(rank=0, function=function))
    return data


def control_plane(store: Store, blobs: BlobServer) -> ControlPlane:
    """A `ControlPlane` that answers each missing RPC with an error that names it."""
    missing = {name: _unimplemented(name) for name in ControlPlane.__abstractmethods__}
    concrete = cast("type[ControlPlane]", type("ConcreteControlPlane", (ControlPlane,), missing))
    return concrete(store, blobs)


def _unimplemented(name: str) -> Callable[[ControlPlane, Stream[Message, Message]], Awaitable[None]]:
    async def answer(plane: ControlPlane, stream: Stream[Message, Message]) -> None:
        await stream.recv_message()
        plane.store.unknown_calls.append(name)
        raise GRPCError(Status.UNIMPLEMENTED, f"the loopback control plane has no {name}")

    return answer
