"""The gRPC methods, those of inference.GRPCInferenceService first: wire bytes in, wire bytes out.

Knows messages and the catalog; knows no transport. Every transport serves these same tables, so
that an answer cannot depend on which one is configured: `unary` answers at once, `slow` waits (load
and unload), `infer` and `stream_infer` answer through a callback. `others` are the methods of the
services beside it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from engines.tensors import Raw
from gateway.catalog import EXTENSIONS, SERVER_NAME, Catalog, RepositoryControl, StatisticsRow
from gateway.errors import NotSupported, StatusTable, UnknownName
from gateway.grpc_api import codec, feedback, wire
from gateway.grpc_api.feedback import Asked, FeedbackService
from gateway.pb import inference_pb2 as pb
from gateway.pipeline import Call, Pipeline
from gateway.request import HeaderLookup, InferResponse, ServedBy
from gateway.statistics import Duration

logger = logging.getLogger(__name__)

SERVICE: Final = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name

Unary = Callable[[bytes], bytes]
Slow = Callable[[bytes], Awaitable[bytes]]
InferReply = Callable[[bytes | Exception, ServedBy | None], None]
"""Takes the serialized answer or the error, and who served; None: it could not be decoded."""


class InferenceService:
    """The service's methods, by name."""

    def __init__(
        self,
        *,
        pipeline: Pipeline,
        catalog: Catalog,
        control: RepositoryControl,
        statuses: StatusTable,
        feedback_service: FeedbackService | None = None,
    ) -> None:
        self._pipeline = pipeline
        self._catalog = catalog
        self._control = control
        self._statuses = statuses
        self.unary: Mapping[str, Unary] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "RepositoryIndex": self._repository_index,
        }
        self.slow: Mapping[str, Slow] = {
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }
        self.others: Mapping[str, Mapping[str, Asked]] = {}
        """Methods by service and name."""
        if feedback_service is not None:
            self.others = {feedback.SERVICE: feedback_service.methods}

    def infer(
        self, data: Raw, header: HeaderLookup, deadline_ns: int | None, reply: InferReply
    ) -> Call | None:
        """Start a ModelInfer; `reply` is called once, possibly before this returns.

        Returns:
            The call, to cancel; None if it was answered because it could not be decoded.
        """

        def answer(outcome: InferResponse | Exception, served_by: ServedBy) -> None:
            if not isinstance(outcome, InferResponse):
                reply(outcome, served_by)
                return
            try:
                message: bytes | Exception = wire.encode(outcome)
            except Exception as exc:  # adapter edge: more than 2 GiB do not fit into a message
                message = exc
            reply(message, served_by)

        try:
            request = wire.decode(data)
        except Exception as exc:  # adapter edge: every error becomes an answer
            self._pipeline.refuse(exc, "grpc")
            reply(exc, None)
            return None
        request.header = header
        request.deadline_ns = deadline_ns
        return self._pipeline.submit(request, answer)

    def stream_infer(
        self,
        data: Raw,
        header: HeaderLookup,
        deadline_ns: int | None,
        reply: Callable[[bytes], None],
    ) -> Call | None:
        """Start one request of a ModelStreamInfer; an error is a message of the stream."""

        def answer(outcome: InferResponse | Exception, served_by: ServedBy) -> None:
            if isinstance(outcome, Exception):
                reply(self._stream_error(outcome, request.id))
                return
            try:
                message = wire.encode_stream(outcome, served_by)
            except Exception as exc:  # adapter edge: as in `infer`
                message = self._stream_error(exc, request.id)
            reply(message)

        try:
            request = wire.decode(data)
        except Exception as exc:  # adapter edge: every error becomes an answer
            self._pipeline.refuse(exc, "grpc")
            reply(self._stream_error(exc, ""))
            return None
        request.header = header
        request.deadline_ns = deadline_ns
        return self._pipeline.submit(request, answer)

    def _stream_error(self, exc: Exception, request_id: str) -> bytes:
        if not self._statuses.is_known(exc):
            logger.error("request failed", exc_info=exc)
        message = pb.ModelStreamInferResponse(error_message=self._statuses.sentence(exc))
        message.infer_response.id = request_id
        return message.SerializeToString()

    def _server_live(self, _: bytes) -> bytes:
        return pb.ServerLiveResponse(live=True).SerializeToString()

    def _server_ready(self, _: bytes) -> bytes:
        return pb.ServerReadyResponse(ready=self._catalog.is_server_ready()).SerializeToString()

    def _model_ready(self, data: bytes) -> bytes:
        request = pb.ModelReadyRequest()
        codec.parse(data, request)
        try:
            ready = self._catalog.is_model_ready(request.name, request.version)
        except UnknownName:  # clients poll this call until it says yes, and take no error for a no
            ready = False
        return pb.ModelReadyResponse(ready=ready).SerializeToString()

    def _server_metadata(self, _: bytes) -> bytes:
        version = self._catalog.server_version()
        answer = pb.ServerMetadataResponse(name=SERVER_NAME, version=version, extensions=EXTENSIONS)
        return answer.SerializeToString()

    def _model_metadata(self, data: bytes) -> bytes:
        request = pb.ModelMetadataRequest()
        codec.parse(data, request)
        info = self._catalog.metadata(request.name, request.version)
        answer = pb.ModelMetadataResponse(
            name=info.name, versions=info.versions, platform=info.platform
        )
        for specs, field in ((info.inputs, answer.inputs), (info.outputs, answer.outputs)):
            for spec in specs:
                field.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
        return answer.SerializeToString()

    def _model_config(self, data: bytes) -> bytes:
        request = pb.ModelConfigRequest()
        codec.parse(data, request)
        document = self._catalog.config(request.name, request.version)
        answer = pb.ModelConfigResponse()
        answer.config.ParseFromString(document.wire)
        return answer.SerializeToString(deterministic=True)  # maps have no order

    def _model_statistics(self, data: bytes) -> bytes:
        request = pb.ModelStatisticsRequest()
        codec.parse(data, request)
        rows = self._catalog.statistics(request.name, request.version)
        answer = pb.ModelStatisticsResponse(model_stats=[_statistics(row) for row in rows])
        return answer.SerializeToString()

    def _repository_index(self, data: bytes) -> bytes:
        request = pb.RepositoryIndexRequest()
        codec.parse(data, request)
        answer = pb.RepositoryIndexResponse()
        for row in self._catalog.index(ready_only=request.ready):
            answer.models.add(
                name=row.model, version=row.version, state=row.state.value, reason=row.reason
            )
        return answer.SerializeToString()

    async def _load(self, data: bytes) -> bytes:
        request = pb.RepositoryModelLoadRequest()
        codec.parse(data, request)
        if request.parameters:
            raise NotSupported("load parameters (config overrides, file uploads) are not supported")
        await self._control.load(request.model_name)
        return pb.RepositoryModelLoadResponse().SerializeToString()

    async def _unload(self, data: bytes) -> bytes:
        request = pb.RepositoryModelUnloadRequest()
        codec.parse(data, request)
        await self._control.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse().SerializeToString()


def _statistics(row: StatisticsRow) -> pb.ModelStatistics:
    s = row.statistics
    inference = pb.InferStatistics(
        success=_duration(s.success),
        fail=_duration(s.fail),
        queue=_duration(s.queue),
        compute_input=_duration(s.compute_input),
        compute_infer=_duration(s.compute_infer),
        compute_output=_duration(s.compute_output),
        cache_hit=pb.StatisticDuration(),
        cache_miss=pb.StatisticDuration(),
    )
    batches: list[Any] = [  # Any: nested generated class
        pb.InferBatchStatistics(
            batch_size=rows,
            compute_input=_duration(batch.compute_input),
            compute_infer=_duration(batch.compute_infer),
            compute_output=_duration(batch.compute_output),
        )
        for rows, batch in sorted(s.batches.items())
    ]
    return pb.ModelStatistics(
        name=row.name,
        version=row.version,
        last_inference=s.last_inference_ms,
        inference_count=s.inference_count,
        execution_count=s.execution_count,
        inference_stats=inference,
        batch_stats=batches,
    )


def _duration(duration: Duration) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=duration.count, ns=duration.ns)
