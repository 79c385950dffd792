"""Plugins, one concern each; see their docstrings."""

pytest_plugins = [
    "fixtures.fix_asyncio",
    "fixtures.fix_hypothesis",
    "fixtures.fix_leaks",
    "fixtures.fix_secrets",
    "fixtures.fix_servers",
    "fixtures.fix_stores",
]
