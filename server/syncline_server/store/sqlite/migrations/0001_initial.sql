-- What the store is: exactly one row.
CREATE TABLE store (
    one           INTEGER PRIMARY KEY CHECK (one = 1),
    store_id      BLOB NOT NULL CHECK (length(store_id) = 8),
    token_secret  BLOB NOT NULL CHECK (length(token_secret) = 32)
) STRICT;

-- One row for each time that a process opened the store, and for each restore.
CREATE TABLE history (
    number      INTEGER PRIMARY KEY,
    history_id  BLOB NOT NULL UNIQUE CHECK (length(history_id) = 8),
    time_us     INTEGER NOT NULL,
    cause       TEXT NOT NULL CHECK (cause IN ('open', 'restore'))
) STRICT;

CREATE TABLE dataset (
    number          INTEGER PRIMARY KEY AUTOINCREMENT,
    dataset_id      TEXT NOT NULL UNIQUE,
    incarnation     BLOB NOT NULL CHECK (length(incarnation) = 16),
    generation      INTEGER NOT NULL,
    identity_kind   INTEGER NOT NULL,
    key_fields      TEXT NOT NULL,
    record_scope    INTEGER NOT NULL,
    schema          TEXT NOT NULL,
    display_name    TEXT NOT NULL,
    description     TEXT NOT NULL,
    min_age_us      INTEGER,
    min_revisions   INTEGER,
    annotations     TEXT NOT NULL,
    create_time_us  INTEGER NOT NULL,
    update_time_us  INTEGER NOT NULL
) STRICT;

-- Where a dataset stands. Apart from its settings, because every commit writes it.
CREATE TABLE head (
    dataset_number  INTEGER PRIMARY KEY REFERENCES dataset (number) ON DELETE CASCADE,
    revision        INTEGER NOT NULL DEFAULT 0,
    commit_id       BLOB NOT NULL CHECK (length(commit_id) = 8),
    record_count    INTEGER NOT NULL DEFAULT 0,
    digest          BLOB NOT NULL CHECK (length(digest) = 16),
    commit_time_us  INTEGER NOT NULL DEFAULT 0,
    purge_revision  INTEGER NOT NULL DEFAULT 0,
    last_position   INTEGER NOT NULL DEFAULT 0
) STRICT;

-- One row for each revision from the purge watermark on.
CREATE TABLE revision (
    dataset_number  INTEGER NOT NULL,
    revision        INTEGER NOT NULL,
    commit_id       BLOB NOT NULL CHECK (length(commit_id) = 8),
    commit_time_us  INTEGER NOT NULL,
    key_id          TEXT NOT NULL,
    source_number   INTEGER NOT NULL,
    reason          INTEGER NOT NULL,
    puts            INTEGER NOT NULL,
    deletes         INTEGER NOT NULL,
    PRIMARY KEY (dataset_number, revision)
) STRICT, WITHOUT ROWID;

-- The newest version of every record and the tombstones (data NULL), in the order of arrival:
-- slot = dataset number << 40 | position. A page of a sync is a range of slots. create_time_us NULL: the record
-- came into being with this commit.
CREATE TABLE record (
    slot            INTEGER PRIMARY KEY,
    revision        INTEGER NOT NULL,
    commit_time_us  INTEGER NOT NULL,
    create_time_us  INTEGER,
    reason          INTEGER NOT NULL,
    record_id       TEXT NOT NULL,
    data            BLOB
) STRICT;

CREATE INDEX record_tombstone ON record (slot, revision) WHERE data IS NULL;

-- Where each record id of a dataset stands in that order. Looking up, telling what is unchanged and keeping
-- the digest touch only this, never the data. Random keys dirty a page each here, so rows are kept small.
-- hash NULL: a tombstone.
CREATE TABLE entry (
    dataset_number  INTEGER NOT NULL,
    record_id       TEXT NOT NULL,
    position        INTEGER NOT NULL,
    revision        INTEGER NOT NULL,
    hash            BLOB,
    source_number   INTEGER NOT NULL,
    PRIMARY KEY (dataset_number, record_id)
) STRICT, WITHOUT ROWID;

-- Datasets that were deleted, until upkeep has removed their rows from record and entry.
CREATE TABLE deleted_dataset (
    number  INTEGER PRIMARY KEY
) STRICT;

CREATE TABLE source (
    number            INTEGER PRIMARY KEY AUTOINCREMENT,
    dataset_number    INTEGER NOT NULL REFERENCES dataset (number) ON DELETE CASCADE,
    source_id         TEXT NOT NULL,
    generation        INTEGER NOT NULL,
    display_name      TEXT NOT NULL,
    disabled          INTEGER NOT NULL,
    create_time_us    INTEGER NOT NULL,
    update_time_us    INTEGER NOT NULL,
    last_received_us  INTEGER,
    UNIQUE (dataset_number, source_id)
) STRICT;

CREATE TABLE access_key (
    key_id          TEXT PRIMARY KEY,
    secret_hash     BLOB NOT NULL,
    role            INTEGER NOT NULL,
    source_number   INTEGER REFERENCES source (number) ON DELETE CASCADE,
    patterns        TEXT NOT NULL,
    display_name    TEXT NOT NULL,
    generation      INTEGER NOT NULL,
    expire_time_us  INTEGER,
    create_time_us  INTEGER NOT NULL,
    last_used_us    INTEGER
) STRICT;

CREATE INDEX access_key_source ON access_key (source_number);

-- Open sessions. What accrue and replace sessions staged is in a file of its own, with their counts.
CREATE TABLE session (
    session_id         TEXT PRIMARY KEY,
    dataset_number     INTEGER NOT NULL REFERENCES dataset (number) ON DELETE CASCADE,
    source_number      INTEGER NOT NULL UNIQUE REFERENCES source (number) ON DELETE CASCADE,
    mode               INTEGER NOT NULL,
    allow_mass_delete  INTEGER NOT NULL,
    idle_timeout_us    INTEGER,
    create_time_us     INTEGER NOT NULL,
    active_time_us     INTEGER NOT NULL,
    calls              INTEGER NOT NULL,
    records            INTEGER NOT NULL
) STRICT;

CREATE INDEX session_dataset ON session (dataset_number);

-- Requests that had an effect, with enough to answer them again.
CREATE TABLE request (
    request_id         TEXT PRIMARY KEY,
    fingerprint        BLOB NOT NULL,
    remember_until_us  INTEGER NOT NULL,
    resource           TEXT NOT NULL,
    revision           INTEGER NOT NULL,
    changed            INTEGER NOT NULL,
    statuses           BLOB NOT NULL,
    record_ids         TEXT NOT NULL,
    created            INTEGER NOT NULL,
    updated            INTEGER NOT NULL,
    unchanged          INTEGER NOT NULL,
    deleted            INTEGER NOT NULL,
    calls              INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX request_remember_until ON request (remember_until_us);
