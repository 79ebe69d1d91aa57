"""gRPC over our own HTTP/2: the transport, its calls, and the services that every server has."""

from gateway.grpc_transport.call import Call
from gateway.grpc_transport.head import Method, Raw
from gateway.grpc_transport.server import Server, Statistics
from gateway.grpc_transport.status import encode_metadata

__all__ = ["Call", "Method", "Raw", "Server", "Statistics", "encode_metadata"]
