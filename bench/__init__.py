"""The benchmark: Syncline beside the systems that one would otherwise use, on the same machine in one run."""

import os

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
"""Before gRPC is imported: of each server that is started it would say that it was not asked about a fork."""
