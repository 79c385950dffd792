"""The reference model of a store: dictionaries and plain loops, no performance, no durability.

It is the oracle of the contract suite and passes that suite itself. Every method follows the prose of
``store/abc.py`` as literally as possible; where SQL works on sets, this goes record by record.
"""

from dataclasses import replace

from support.store_model_catalog import ModelCatalog
from support.store_model_reading import ModelReading
from support.store_model_writing import ModelWriting
from syncline_server.errors import (
    NotFound,
)
from syncline_server.store.abc import PurgeResult


class ModelStore(ModelCatalog, ModelWriting, ModelReading):
    """All of a store, in memory."""

    # -- replicas -------------------------------------------------------------------------------------------

    async def report_replicas(self, reports):
        for sent in reports:
            if sent.dataset_number not in self._states:
                continue
            key = (sent.dataset_number, sent.replica_id)
            report, known = sent, self._replicas.get(key)
            if known is not None:
                report = replace(
                    report,
                    revision=report.revision and max(known.revision, report.revision),
                    report_time_us=max(known.report_time_us, report.report_time_us),
                )
            self._replicas[key] = report

    async def list_replicas(self, dataset_number, *, reported_since_us=0):
        return sorted(
            (
                r
                for r in self._replicas.values()
                if r.dataset_number == dataset_number and r.report_time_us >= reported_since_us
            ),
            key=lambda r: (r.revision, r.replica_id),
        )

    async def delete_replica(self, dataset_number, replica_id, *, identity=None):
        if self._seen(identity):
            return
        if self._replicas.pop((dataset_number, replica_id), None) is None:
            raise NotFound("REPLICA_NOT_FOUND", "no such replica")
        self._remember(identity, resource=replica_id)

    async def forget_replicas(self, *, before_us, limit, lease=None):
        self.check_lease(lease)
        old = [key for key, r in self._replicas.items() if r.report_time_us < before_us][:limit]
        for key in old:
            del self._replicas[key]
        return len(old)

    # -- upkeep ---------------------------------------------------------------------------------------------

    async def purge(
        self, dataset_number, *, before_us, min_revisions, max_tombstones, not_beyond=None, lease=None
    ):
        state = self._state(dataset_number)
        self.check_lease(lease)
        head = state.dataset.head
        wanted = max(
            (
                r
                for r, (_, t) in state.revisions.items()
                if t < before_us and r <= head.revision - min_revisions
            ),
            default=0,
        )
        if not_beyond is not None:
            wanted = min(wanted, not_beyond)
        tombstones = sorted(row.revision for row in state.rows.values() if row.data is None)
        watermark = wanted
        while sum(r <= watermark for r in tombstones) > max_tombstones:
            watermark -= 1
        if wanted > watermark and not any(r <= watermark for r in tombstones):
            watermark = tombstones[
                0
            ]  # one revision has more than that: all of it, or purge would stop forever
        if watermark <= head.purge_revision:
            return PurgeResult(purge_revision=head.purge_revision, tombstones=0, more=False)
        gone = [r for r, row in state.rows.items() if row.data is None and row.revision <= watermark]
        for record_id in gone:
            del state.rows[record_id]
        state.revisions = {r: v for r, v in state.revisions.items() if r >= watermark}
        state.dataset = replace(state.dataset, head=replace(head, purge_revision=watermark))
        return PurgeResult(purge_revision=watermark, tombstones=len(gone), more=watermark < wanted)

    async def maintain(self):
        return

    async def probe(self):
        return
