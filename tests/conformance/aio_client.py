"""Checks of grpcio's asyncio client: `python -m tests.conformance.aio_client ADDRESS`.

A process of its own, because that client takes a loop of its own for all of a process.
"""

from __future__ import annotations

import asyncio
import struct
import sys
from typing import Any, Final

import grpc
import grpc.aio

from gateway.pb import inference_pb2 as pb
from tests.conformance.rpc import SERVICE
from tests.conformance.watch import check, request

_OPTIONS: Final = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
_MANY: Final = 1_000


def slow() -> bytes:
    """Return a request to a model that takes its time."""
    asked = pb.ModelInferRequest(model_name="slow")
    asked.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    asked.raw_input_contents.append(struct.pack("<4f", 1, 2, 3, 4))
    data: bytes = asked.SerializeToString()
    return data


def _infer(channel: grpc.aio.Channel) -> Any:  # Any: grpcio's callable
    return channel.unary_unary(SERVICE + "ModelInfer")


async def _unary(channel: grpc.aio.Channel) -> None:
    call = _infer(channel)(request(7), timeout=10)
    check(7, await call)
    trailers = dict(await call.trailing_metadata())
    assert trailers["x-request-id"]


async def _many(channel: grpc.aio.Channel) -> None:
    infer = _infer(channel)
    answers = await asyncio.gather(*(infer(request(n), timeout=20) for n in range(_MANY)))
    for number, answer in enumerate(answers):
        check(number, answer)


async def _stream(channel: grpc.aio.Channel) -> None:
    open_stream: Any = channel.stream_stream(SERVICE + "ModelStreamInfer")  # Any: as above
    call = open_stream(timeout=20)
    for number in range(300):
        await call.write(request(number))
    await call.done_writing()
    ids = [pb.ModelStreamInferResponse.FromString(m).infer_response.id async for m in call]
    assert ids == [f"n{n}" for n in range(300)]


async def _deadline(channel: grpc.aio.Channel) -> None:
    code = await _code(_infer(channel)(slow(), timeout=0.1))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED, code


async def _cancel(channel: grpc.aio.Channel) -> None:
    call = _infer(channel)(slow(), timeout=10)
    await asyncio.sleep(0.05)
    call.cancel()
    try:
        await call
    except asyncio.CancelledError:
        return
    raise AssertionError("the call was not cancelled")


async def _gzip(channel: grpc.aio.Channel) -> None:
    infer = _infer(channel)
    check(9, await infer(request(9), timeout=10, compression=grpc.Compression.Gzip))


async def _code(call: Any) -> grpc.StatusCode:  # Any: grpcio's call
    try:
        await call
    except grpc.aio.AioRpcError as exc:
        return exc.code()
    return grpc.StatusCode.OK


async def main(address: str) -> None:
    """Make every check on one channel; the first that fails ends it."""
    async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
        for attempt in (_unary, _many, _stream, _deadline, _cancel, _gzip, _unary):
            await attempt(channel)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
