"""A closed loop of ModelInfer calls on grpcio's aio client: so many calls under way, one channel.

Messages are given as bytes ready to send and come back as bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeVar

import grpc
import grpc.aio

Tag = TypeVar("Tag")
Metadata = tuple[tuple[str, str], ...]
CallFailed = grpc.aio.AioRpcError
"""What a call ends with that is not answered; has `code()` and `details()`."""

METHOD: Final = "/inference.GRPCInferenceService/ModelInfer"
_OPTIONS: Final = (("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1))


async def closed_loop(
    address: tuple[str, int],
    calls: Iterator[tuple[Tag, bytes, Metadata]],
    on_answer: Callable[[Tag, bytes, Mapping[str, str]], None],
    *,
    concurrency: int,
) -> None:
    """Make every call; return when the last one is answered.

    Args:
        address: of the listener.
        calls: tag, message and metadata; drawn when one of the running calls has ended.
        on_answer: gets the tag, the answer's message and its trailing metadata.
        concurrency: how many calls are under way at any time.

    Raises:
        CallFailed: a call did not succeed.
    """
    host, port = address
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    async with grpc.aio.insecure_channel(target, options=_OPTIONS) as channel:
        # Any: bytes in, bytes out; grpcio's types want a serializer to tell.
        infer: Any = channel.unary_unary(METHOD)

        async def caller() -> None:
            for tag, message, metadata in calls:
                call = infer(message, metadata=metadata)
                answer = await call
                on_answer(tag, answer, dict(await call.trailing_metadata()))

        callers = [asyncio.create_task(caller()) for _ in range(concurrency)]
        try:
            await asyncio.gather(*callers)
        finally:
            for task in callers:
                task.cancel()
            await asyncio.gather(*callers, return_exceptions=True)
