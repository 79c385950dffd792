"""What PostgreSQL's text cannot hold, and how texts go to it by the thousand.

It has no NUL. So nothing that is stored holds one, and what is asked with one can be asked without (hazard F54).
"""

from collections.abc import Sequence


def bound(text: str) -> str:
    """Text that has the same texts before and behind it as this one, of those that can be there.

    Whatever begins like this text up to its first NUL, and goes on, goes on with something greater.
    """
    return text.partition("\0")[0]


def lines(texts: Sequence[str]) -> str:
    """The texts as lines of one. Raises ValueError when one holds a line end: it would be taken for two."""
    joined = "\n".join(texts)
    if texts and joined.count("\n") != len(texts) - 1:
        raise ValueError("a record id holds a line end")
    return joined
