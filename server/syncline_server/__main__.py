"""``python -m syncline_server`` is ``syncline-server``."""

from syncline_server.cli import main

main()
