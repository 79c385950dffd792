"""Plugins, one concern each; see their docstrings."""

import os
import resource

# PostgreSQL is started as another user, which takes a fork; gRPC's handlers for forks have crashed such a child.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"

# Whatever grows without end fails with the place where it does, before the machine runs out of memory.
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, resource.getrlimit(resource.RLIMIT_AS)[1]))

pytest_plugins = [
    "fixtures.fix_asyncio",
    "fixtures.fix_hypothesis",
    "fixtures.fix_leaks",
    "fixtures.fix_processes",
    "fixtures.fix_secrets",
    "fixtures.fix_servers",
    "fixtures.fix_stores",
]
