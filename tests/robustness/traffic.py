"""Traffic that records itself: writers that push and delete, and a subscriber that holds a copy."""

import asyncio
import random
import time

import syncline
from robustness.history import History

KEYS = [f"k{n:03d}" for n in range(60)]


async def writer(dataset, history: History, rng: random.Random, stop: asyncio.Event) -> None:
    """Push or delete a few keys, again and again, until told to stop."""
    while not stop.is_set():
        keys = tuple(rng.sample(KEYS, rng.randint(1, 6)))
        delete = rng.random() < 0.25
        operation = history.invoke(keys, delete=delete, now=time.monotonic())
        try:
            if delete:
                result = await dataset.delete([{"id": key} for key in keys])
            else:
                result = await dataset.push(
                    [{"id": key, "op": operation.number, "pad": "x" * rng.randint(0, 400)} for key in keys]
                )
        except (syncline.OutcomeUnknown, syncline.Unavailable, syncline.DeadlineExceeded):
            continue  # stays unknown
        except syncline.SynclineError:
            operation.outcome = "rejected"
            continue
        operation.returned = time.monotonic()
        operation.outcome = "ok"
        operation.revision = result.revision
        operation.changed = any(
            r.status in {"created", "updated", "deleted"}
            or getattr(r.status, "name", "") in {"CREATED", "UPDATED", "DELETED"}
            for r in result.results
        )


async def subscriber(dataset, history: History, copy: syncline.Copy) -> None:
    """Follow the dataset; the copy verifies count and digest at every checkpoint (G7)."""
    async with dataset.changes() as stream:
        async for event in stream:
            copy.apply(event)
            if isinstance(event, syncline.Put):
                history.events.append(("put", event.record_id, event.revision, event.data["op"]))
            elif isinstance(event, syncline.Delete):
                history.events.append(("delete", event.record_id, event.revision, None))
            elif isinstance(event, syncline.Checkpoint):
                history.checkpoints.append((event.revision, len(history.events)))
            elif isinstance(event, syncline.Reset):
                history.resets.append(str(event.reason))
