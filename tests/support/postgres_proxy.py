"""A TCP proxy between a node and PostgreSQL, which knows what the connections are for and when a commit is answered.

It reads the messages on their way to the node (PostgreSQL's protocol 3.0: a type byte, four bytes of length that count
themselves, the content), so that a connection can be cut exactly between a commit and its answer. Connections must be
without TLS.
"""

import asyncio
from typing import Final

from support.proxy import ANSWERS, CHUNK_BYTES, REQUESTS, Cut, Link, Proxy

READER: Final = "reader"
WRITER: Final = "writer"
LISTENER: Final = "listener"

_HEADER_BYTES: Final = 5
_ROW: Final = ord("D")
_COMPLETE: Final = ord("C")
_READY: Final = ord("Z")
_NO_TRANSACTION: Final = b"I"
_APPLIED: Final = b"\0\x01\0\0\0\x01\x01"
"""A row of one column, which is true: what ``apply_group_1`` answers when it has written."""


class PostgresProxy(Proxy):
    """Forwards until told otherwise; each link's ``kind`` is one of those above."""

    def __init__(self, target: str, *, seed: int = 0) -> None:
        super().__init__(target, seed=seed)
        self.commits = 0
        """Answers to commits that came by."""
        self._cut_at = 0

    def cut_before_commit_answer(self, number: int) -> None:
        """Cut once, instead of the answer that is the ``number``-th from now: the commit is done, and nobody hears."""
        self._cut_at = self.commits + number

    @property
    def has_cut(self) -> bool:
        """Whether it came to that."""
        return self._cut_at == 0

    def of_kind(self, kind: str) -> list[Link]:
        """Connections of one kind."""
        return [link for link in self.links if link.kind == kind]

    async def mend(self) -> None:
        """See Proxy."""
        self._cut_at = 0
        await super().mend()

    async def _pass_requests(
        self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while chunk := await reader.read(CHUNK_BYTES):
            if not link.kind:  # the first message names the settings
                link.kind = READER if b"default_transaction_read_only\0on" in chunk else WRITER
            if b"LISTEN " in chunk:
                link.kind = LISTENER
            await self._forward(link, REQUESTS, chunk, writer)
        raise Cut

    async def _pass_answers(
        self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        rest, applied, committed = b"", False, False
        while chunk := await reader.read(CHUNK_BYTES):
            rest += chunk
            start = 0
            while len(rest) - start >= _HEADER_BYTES:
                end = start + 1 + int.from_bytes(rest[start + 1 : start + _HEADER_BYTES])
                if end > len(rest):
                    break
                content = rest[start + _HEADER_BYTES : end]
                if rest[start] == _ROW:
                    applied = content == _APPLIED
                elif rest[start] == _COMPLETE:
                    committed = content == b"COMMIT\0"
                elif rest[start] == _READY:
                    # Who asks for one row is not told of completion, only that the server is ready again.
                    if link.kind == WRITER and content == _NO_TRANSACTION and (applied or committed):
                        self._note_commit()
                    applied = committed = False
                start = end
            await self._forward(link, ANSWERS, rest[:start], writer)
            rest = rest[start:]
        raise Cut

    def _note_commit(self) -> None:
        self.commits += 1
        if self.commits == self._cut_at:
            self._cut_at = 0
            self.cuts += 1
            raise Cut
