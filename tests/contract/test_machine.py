"""The store against the reference model: any sequence of operations has the same outcome in both."""

import pytest

from support.store_machine import run


@pytest.mark.on_both
@pytest.mark.timeout(300)
@pytest.mark.parametrize("turns", [1, pytest.param(6, marks=pytest.mark.slow)])
def test_t47_the_store_does_what_the_model_does(store_name: str, turns: int) -> None:
    """T47 on store level. On PostgreSQL each of the many statements of a step is a round trip."""
    run(("model", store_name), examples=turns * (30 if store_name == "sqlite" else 3))
