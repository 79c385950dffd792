"""Acceptance: the SDK and the commands against real server processes."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def started(shared_server):
    """The shared server is there before any test looks at what was running."""
