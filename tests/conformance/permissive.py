"""A server of ours that answers any request on any path: what h2spec asks for.

The transport of the product, but for two things: no head is refused for not being gRPC, and a
request is answered when it has ended, whatever its body. `python -m tests.conformance.permissive`
prints its port and serves until its standard input is closed.
"""

from __future__ import annotations

import asyncio
import sys

import uvloop

from gateway.grpc_transport.call import Call
from gateway.grpc_transport.head import CallHead
from gateway.grpc_transport.server import Server
from gateway.http2.fields import Fields
from gateway.http2.limits import Limits
from tests.support.gateway import HOST


class AnyCall(Call):
    """A request that is answered with a few bytes."""

    __slots__ = ()

    def take_head(self, *, is_last: bool) -> None:
        """Answer if that was all."""
        if is_last:
            self._answer()

    def take_data(self, data: bytes, start: int, end: int, is_last: int) -> None:
        """Answer if that was the end."""
        if is_last:
            self._answer()

    def _answer(self) -> None:
        self.send(b"0123456789")
        self.finish()


class Permissive(Server):
    """A server that takes any request that HTTP/2 allows."""

    open = AnyCall

    def read_head(self, fields: Fields) -> CallHead:
        """Refuse nothing but what is malformed."""
        head = super().read_head(fields)
        head.http_refusal = head.refusal = None
        head.is_eager = True
        return head


async def serve() -> None:
    """Serve until standard input is closed."""
    server = Permissive(
        methods={},
        limits=Limits(),
        max_message_bytes=1 << 20,
        compression="none",
        name="test",
        host=HOST,
        port=0,
    )
    await server.start()
    sys.stdout.write(f"{server.port}\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(1.0)


if __name__ == "__main__":
    uvloop.run(serve())
