# ruff: noqa: N802 - the methods are named as the RPCs are
"""The RPCs by which the client finds an app and reads its log: look-up, counts per interval, entries."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from grpclib import GRPCError, Status
from modal_proto import api_pb2

from tests.modal_plane.container_rpcs import ContainerRPCs
from tests.modal_plane.store import ENVIRONMENT

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp
    from grpclib.server import Stream

    from tests.modal_plane.store import LogEntry

_HANG_S = 60.0


class LogRPCs(ContainerRPCs):
    """Serves the entries that a test put into `Store.logs`."""

    async def AppGetOrCreate(
        self, stream: Stream[api_pb2.AppGetOrCreateRequest, api_pb2.AppGetOrCreateResponse]
    ) -> None:
        request = await self._receive(stream)
        app = self.store.deployed(request.app_name)
        if app is None:
            raise GRPCError(Status.NOT_FOUND, f"App '{request.app_name}' not found in environment '{ENVIRONMENT}'")
        await stream.send_message(api_pb2.AppGetOrCreateResponse(app_id=app.app_id))

    async def AppCountLogs(self, stream: Stream[api_pb2.AppCountLogsRequest, api_pb2.AppCountLogsResponse]) -> None:
        request = await self._receive(stream)
        if self.store.logs_fail is not None:
            raise GRPCError(self.store.logs_fail, "as the test wants it")
        if self.store.logs_hang:
            await asyncio.sleep(_HANG_S)  # the client leaves first, which cancels this
        answer = api_pb2.AppCountLogsResponse(app_id=request.app_id)
        start = int(_seconds(request.since)) // request.bucket_secs * request.bucket_secs
        for begin in range(start, int(_seconds(request.until)) + 1, request.bucket_secs):
            entries = self._between(request.app_id, begin, begin + request.bucket_secs)
            bucket = answer.buckets.add(stdout_logs=len(entries))
            bucket.bucket_start_at.seconds = begin
        await stream.send_message(answer)

    async def AppFetchLogs(self, stream: Stream[api_pb2.AppFetchLogsRequest, api_pb2.AppFetchLogsResponse]) -> None:
        request = await self._receive(stream)
        answer = api_pb2.AppFetchLogsResponse()
        for entry in self._between(request.app_id, _seconds(request.since), _seconds(request.until)):
            batch = answer.batches.add(task_id=entry.container, function_id="fu-0000000000000000000001")
            item = batch.items.add(data=entry.data, timestamp=entry.at, file_descriptor=entry.source)
            item.timestamp_ns = int(entry.at * 1e9)
        await stream.send_message(answer)

    def _between(self, app_id: str, since: float, until: float) -> list[LogEntry]:
        return [entry for entry in self.store.logs.get(app_id, []) if since <= entry.at < until]


def _seconds(stamp: Timestamp) -> float:
    return stamp.seconds + stamp.nanos / 1e9
