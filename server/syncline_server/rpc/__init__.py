"""The gRPC edge: one thin file per service, and the only place that knows grpc and protobuf."""
