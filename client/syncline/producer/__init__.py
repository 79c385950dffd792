"""Producers: readings of a sensor, each applied exactly once, over links that break and through crashes.

::

    Producer        send, flush, what to do when there is no room         _producer
     +-- Link       the stream: opening, numbers, acknowledgements         _link
     +-- Outbox     readings on their way, and their numbers; no I/O       _outbox
     +-- Memory or Spooled, over a Spool: where readings wait              _keep, _spool
"""

from syncline.producer._keep import Limits
from syncline.producer._producer import MEMORY_LIMITS, SPOOL_LIMITS, Producer, Room, WhenFull

__all__ = ["MEMORY_LIMITS", "SPOOL_LIMITS", "Limits", "Producer", "Room", "WhenFull"]
