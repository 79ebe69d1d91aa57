"""The gRPC adapter: codec, service and the reference transport on grpcio."""
