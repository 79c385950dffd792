"""Runs ``syncline-server`` with a planted fault.

A test puts ``python run_planted.py NAME`` before the command that would start the server.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from robustness import planted_nodes
from robustness.planted import SERVER

assert SERVER.keys() >= planted_nodes.DISTURBANCES

if __name__ == "__main__":
    name, *rest = sys.argv[1:]
    SERVER[name]()
    sys.argv = ["syncline-server", *rest[rest.index("serve") :]]
    from syncline_server.cli import main

    main()
