-- How often each producer of a source is expected to be heard from.
ALTER TABLE source ADD COLUMN expect_every_us INTEGER;

-- Those who number their writes, remembered without limit.
CREATE TABLE producer (
    number            INTEGER PRIMARY KEY AUTOINCREMENT,
    source_number     INTEGER NOT NULL REFERENCES source (number) ON DELETE CASCADE,
    producer_id       TEXT NOT NULL,
    epoch             INTEGER NOT NULL,
    last_sequence     INTEGER NOT NULL DEFAULT 0,
    create_time_us    INTEGER NOT NULL,
    open_time_us      INTEGER NOT NULL,
    last_received_us  INTEGER,
    UNIQUE (source_number, producer_id)
) STRICT;

-- One row for each epoch that was opened: where the numbers stood then, so how far the one before it came.
CREATE TABLE producer_epoch (
    producer_number  INTEGER NOT NULL REFERENCES producer (number) ON DELETE CASCADE,
    epoch            INTEGER NOT NULL,
    base_sequence    INTEGER NOT NULL,
    PRIMARY KEY (producer_number, epoch)
) STRICT, WITHOUT ROWID;

-- Replicas that report how far they have come.
CREATE TABLE replica (
    dataset_number  INTEGER NOT NULL REFERENCES dataset (number) ON DELETE CASCADE,
    replica_id      TEXT NOT NULL,
    key_id          TEXT NOT NULL,
    revision        INTEGER NOT NULL,
    report_time_us  INTEGER NOT NULL,
    PRIMARY KEY (dataset_number, replica_id)
) STRICT, WITHOUT ROWID;
