"""The part of the gRPC API of etcd that the benchmark speaks; generated from ``etcd.proto``."""
