-- Ids are compared as bytes on every machine, whatever the locale of the database.

-- What the store is: exactly one row.
CREATE TABLE store (
    one           smallint PRIMARY KEY CHECK (one = 1),
    store_id      bytea NOT NULL CHECK (octet_length(store_id) = 8),
    token_secret  bytea NOT NULL CHECK (octet_length(token_secret) = 32)
);

-- One row for each cluster and timeline that the store has lived on, and for each restore.
CREATE TABLE history (
    number      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    history_id  bytea NOT NULL UNIQUE CHECK (octet_length(history_id) = 8),
    time_us     bigint NOT NULL,
    cause       text NOT NULL CHECK (cause IN ('open', 'restore')),
    place       text NOT NULL  -- system identifier, timeline and oid of the database
);

CREATE TABLE dataset (
    number          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    dataset_id      text COLLATE "C" NOT NULL UNIQUE,
    incarnation     bytea NOT NULL CHECK (octet_length(incarnation) = 16),
    generation      bigint NOT NULL,
    identity_kind   smallint NOT NULL,
    key_fields      text NOT NULL,
    record_scope    smallint NOT NULL,
    schema          text NOT NULL,
    display_name    text NOT NULL,
    description     text NOT NULL,
    min_age_us      bigint,
    min_revisions   bigint,
    annotations     text NOT NULL,
    create_time_us  bigint NOT NULL,
    update_time_us  bigint NOT NULL
);

-- Where a dataset stands; its row is the lock of the dataset. Apart from the settings, because every commit writes it:
-- no index but the key, and room on the page, keep such an update on its page (HOT) and its dead versions short-lived.
-- version grows with every transaction that changes anything a commit depends on: head, entries, settings, sources,
-- sessions, producers and remembered requests of the dataset.
CREATE TABLE head (
    dataset_number  bigint PRIMARY KEY REFERENCES dataset (number) ON DELETE CASCADE,
    version         bigint NOT NULL DEFAULT 0,
    revision        bigint NOT NULL DEFAULT 0,
    commit_id       bytea NOT NULL CHECK (octet_length(commit_id) = 8),
    record_count    bigint NOT NULL DEFAULT 0,
    digest          bytea NOT NULL CHECK (octet_length(digest) = 16),
    commit_time_us  bigint NOT NULL DEFAULT 0,
    purge_revision  bigint NOT NULL DEFAULT 0,
    last_position   bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- One row for each revision from the purge watermark on.
CREATE TABLE revision (
    dataset_number  bigint NOT NULL,
    revision        bigint NOT NULL,
    commit_id       bytea NOT NULL CHECK (octet_length(commit_id) = 8),
    commit_time_us  bigint NOT NULL,
    key_id          text NOT NULL,
    source_number   bigint NOT NULL,
    reason          smallint NOT NULL,
    puts            bigint NOT NULL,
    deletes         bigint NOT NULL,
    PRIMARY KEY (dataset_number, revision)
);

-- The newest version of every record and the tombstones (data NULL), in the order of arrival. A page of a sync is a
-- range of positions. A change deletes the old row and appends a new one.
CREATE TABLE record (
    dataset_number  bigint NOT NULL,
    position        bigint NOT NULL,
    revision        bigint NOT NULL,
    commit_time_us  bigint NOT NULL,
    reason          smallint NOT NULL,
    record_id       text COLLATE "C" NOT NULL,
    data            bytea,
    PRIMARY KEY (dataset_number, position)
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.2,
        autovacuum_analyze_scale_factor = 0.05);

CREATE INDEX record_tombstone ON record (dataset_number, position) INCLUDE (revision) WHERE data IS NULL;

-- Where each record id of a dataset stands in that order. Looking up, telling what is unchanged and keeping the
-- digest touch only this, never the data. Nothing but the key is indexed, so an update stays on its page while there
-- is room. hash NULL: a tombstone.
CREATE TABLE entry (
    dataset_number  bigint NOT NULL,
    record_id       text COLLATE "C" NOT NULL,
    position        bigint NOT NULL,
    revision        bigint NOT NULL,
    source_number   bigint NOT NULL,
    create_time_us  bigint NOT NULL,
    hash            bytea,
    PRIMARY KEY (dataset_number, record_id)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.2,
        autovacuum_analyze_scale_factor = 0.05);

-- Datasets that were deleted, until upkeep has removed their rows from record, entry and revision.
CREATE TABLE deleted_dataset (
    number  bigint PRIMARY KEY
);

CREATE TABLE source (
    number            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    dataset_number    bigint NOT NULL REFERENCES dataset (number) ON DELETE CASCADE,
    source_id         text COLLATE "C" NOT NULL,
    generation        bigint NOT NULL,
    display_name      text NOT NULL,
    disabled          boolean NOT NULL,
    create_time_us    bigint NOT NULL,
    update_time_us    bigint NOT NULL,
    last_received_us  bigint,
    expect_every_us   bigint,
    UNIQUE (dataset_number, source_id)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

CREATE TABLE access_key (
    key_id          text COLLATE "C" PRIMARY KEY,
    secret_hash     bytea NOT NULL,
    role            smallint NOT NULL,
    source_number   bigint REFERENCES source (number) ON DELETE CASCADE,
    patterns        text NOT NULL,
    display_name    text NOT NULL,
    generation      bigint NOT NULL,
    expire_time_us  bigint,
    create_time_us  bigint NOT NULL,
    last_used_us    bigint
) WITH (fillfactor = 70);

CREATE INDEX access_key_source ON access_key (source_number);

-- Open sessions.
CREATE TABLE session (
    session_id         text COLLATE "C" PRIMARY KEY,
    number             bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    dataset_number     bigint NOT NULL REFERENCES dataset (number) ON DELETE CASCADE,
    source_number      bigint NOT NULL UNIQUE REFERENCES source (number) ON DELETE CASCADE,
    mode               smallint NOT NULL,
    allow_mass_delete  boolean NOT NULL,
    idle_timeout_us    bigint,
    create_time_us     bigint NOT NULL,
    active_time_us     bigint NOT NULL,
    calls              bigint NOT NULL,
    records            bigint NOT NULL,
    conflict_policy    smallint NOT NULL,
    base_revision      bigint NOT NULL
) WITH (fillfactor = 50);

CREATE INDEX session_dataset ON session (dataset_number);

-- Accepted calls of accrue and replace sessions.
CREATE TABLE staged_call (
    session_number  bigint NOT NULL,
    number          bigint NOT NULL,
    request_id      text COLLATE "C",
    fingerprint     bytea,
    content         bytea NOT NULL,
    records         bigint NOT NULL,  -- of all calls up to this one
    PRIMARY KEY (session_number, number)
);

CREATE UNIQUE INDEX staged_call_request ON staged_call (session_number, request_id);

-- What those sessions hold: the last action for each record id. ordinal: where it stands in the order sent.
-- hash and data NULL: delete.
CREATE TABLE staged (
    session_number  bigint NOT NULL,
    record_id       text COLLATE "C" NOT NULL,
    ordinal         bigint NOT NULL,
    hash            bytea,
    data            bytea,
    PRIMARY KEY (session_number, record_id)
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);

-- Sessions that ended, until upkeep has removed what they staged.
CREATE TABLE ended_session (
    number  bigint PRIMARY KEY
);

-- Requests that had an effect, with enough to answer them again.
CREATE TABLE request (
    request_id         text COLLATE "C" PRIMARY KEY,
    fingerprint        bytea NOT NULL,
    remember_until_us  bigint NOT NULL,
    resource           text NOT NULL DEFAULT '',
    revision           bigint NOT NULL DEFAULT 0,
    changed            boolean NOT NULL DEFAULT false,
    statuses           bytea NOT NULL DEFAULT '',
    record_ids         text NOT NULL DEFAULT '',
    created            bigint NOT NULL DEFAULT 0,
    updated            bigint NOT NULL DEFAULT 0,
    unchanged          bigint NOT NULL DEFAULT 0,
    deleted            bigint NOT NULL DEFAULT 0,
    calls              bigint NOT NULL DEFAULT 0,
    kept               bigint NOT NULL DEFAULT 0
);

CREATE INDEX request_remember_until ON request (remember_until_us);

-- Those who number their writes, remembered without limit. last_sequence -1: forgotten, but its epochs are used up.
CREATE TABLE producer (
    number            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source_number     bigint NOT NULL REFERENCES source (number) ON DELETE CASCADE,
    producer_id       text COLLATE "C" NOT NULL,
    epoch             bigint NOT NULL,
    last_sequence     bigint NOT NULL DEFAULT 0,
    create_time_us    bigint NOT NULL,
    open_time_us      bigint NOT NULL,
    last_received_us  bigint,
    UNIQUE (source_number, producer_id)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- One row for each epoch that was opened: where the numbers stood then, so how far the one before it came.
CREATE TABLE producer_epoch (
    producer_number  bigint NOT NULL REFERENCES producer (number) ON DELETE CASCADE,
    epoch            bigint NOT NULL,
    base_sequence    bigint NOT NULL,
    PRIMARY KEY (producer_number, epoch)
);

-- Replicas that report how far they have come.
CREATE TABLE replica (
    dataset_number  bigint NOT NULL REFERENCES dataset (number) ON DELETE CASCADE,
    replica_id      text COLLATE "C" NOT NULL,
    key_id          text NOT NULL,
    revision        bigint NOT NULL,
    report_time_us  bigint NOT NULL,
    PRIMARY KEY (dataset_number, replica_id)
) WITH (fillfactor = 70);
