"""The ``syncline`` command.

One module for each group of commands; ``app`` puts them together. Exit codes: ``exits``. What an input file
may look like: ``files`` and ``columns``.
"""

import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; ``arguments`` are by default those of the process."""
    # gRPC reads this when it is imported: its core writes lines of its own form among the messages, one for each
    # attempt at a TLS handshake.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        from syncline.cli.app import run
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.stderr.write("error: the command needs its extra: pip install 'syncline[cli]'\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return run(sys.argv[1:] if arguments is None else arguments)
