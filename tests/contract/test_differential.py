"""T86: the two stores side by side. What a server does on one of them it does on the other, to the byte."""

from dataclasses import replace
from typing import Any

import pytest

from support.store_machine import Machine, run
from syncline_server.feed import tokens
from syncline_server.feed.frames import FrameMaker
from syncline_server.feed.tokens import Origin
from syncline_server.model import Page
from syncline_server.rpc.frames import ProtobufEncoder
from syncline_server.rpc.status import refusal

ORIGIN = Origin(store_id=b"s" * 8, history_id=b"h" * 8, incarnation=b"i" * 16)


class Differential(Machine):
    """As with the model, and errors as they travel, and pages as frames with their tokens."""

    maker = FrameMaker(ProtobufEncoder(), ORIGIN, b"secret")

    def plain(self, result: Any) -> Any:
        return refusal(result) if isinstance(result, Exception) else result

    def encoded(self, start: Page | None, page: Page) -> Any:
        """Commit ids are random, and nothing else is."""
        begun = None if start is None else tokens.advance(None, _anonymous(start), ORIGIN)
        return self.maker.page(begun, _anonymous(page))


def _anonymous(page: Page) -> Page:
    return replace(page, head=replace(page.head, commit_id=b"c" * 8))


@pytest.mark.usefixtures("postgres_cluster")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("examples", [2, pytest.param(40, marks=pytest.mark.slow)])
def test_t86_both_stores_give_the_same_revisions_frames_digests_and_errors(examples: int) -> None:
    run(("sqlite", "postgres"), examples=examples, machine=Differential)
