"""Page tokens of lists: opaque, URL-safe, bound to one dataset, filter and field mask.

Base64url, unpadded, of ``version 1 | MAC 16 | last record id``; the MAC (BLAKE2b keyed with the secret of the
store, salted with the fingerprint of filter and mask) is over version, incarnation and id, so a token of another
list does not fit.
"""

import base64
import binascii
import hmac
from hashlib import blake2b
from typing import Final

from syncline_server.errors import InvalidArgument

_VERSION: Final = b"\x01"
_MAC_BYTES: Final = 16
_PERSON: Final = b"syncline.list"


def encode(after: str, *, incarnation: bytes, secret: bytes, fingerprint: bytes = b"") -> str:
    """Token of the page that begins after this record id; ``fingerprint`` is empty for all records, whole."""
    last = after.encode()
    token = _VERSION + _mac(last, incarnation, secret, fingerprint) + last
    return base64.urlsafe_b64encode(token).rstrip(b"=").decode()


def decode(token: str, *, incarnation: bytes, secret: bytes, fingerprint: bytes = b"") -> str:
    """Record id that the page follows. Raises InvalidArgument(PAGE_TOKEN_INVALID)."""
    try:
        raw = base64.b64decode(
            token.encode("ascii") + b"=" * (-len(token) % 4), altchars=b"-_", validate=True
        )
    except (UnicodeEncodeError, binascii.Error):
        raise _invalid() from None
    head, mac, last = raw[:1], raw[1 : 1 + _MAC_BYTES], raw[1 + _MAC_BYTES :]
    if head != _VERSION or not hmac.compare_digest(mac, _mac(last, incarnation, secret, fingerprint)):
        raise _invalid()
    return last.decode()


def _mac(last: bytes, incarnation: bytes, secret: bytes, fingerprint: bytes) -> bytes:
    keyed = blake2b(
        _VERSION + incarnation, digest_size=_MAC_BYTES, key=secret, person=_PERSON, salt=fingerprint
    )
    keyed.update(last)
    return keyed.digest()


def _invalid() -> InvalidArgument:
    message = "it is not a page token of this dataset with this filter and mask"
    return InvalidArgument("PAGE_TOKEN_INVALID", f"page_token: {message}", fields=[("page_token", message)])
