-- The right to do what only one node at a time should do. fence grows each time that it changes hands; whoever does
-- something under it locks the row FOR SHARE and compares. holder '': given back.
CREATE TABLE lease (
    name            text COLLATE "C" PRIMARY KEY,
    holder          text NOT NULL,
    fence           bigint NOT NULL,
    expire_time_us  bigint NOT NULL
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- Servers that have the store open, as they last told about themselves. addresses: a JSON array.
CREATE TABLE node (
    node_id         text COLLATE "C" PRIMARY KEY,
    name            text COLLATE "C" NOT NULL,
    addresses       text NOT NULL,
    version         text NOT NULL,
    start_time_us   bigint NOT NULL,
    report_time_us  bigint NOT NULL,
    lag_us          bigint NOT NULL
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
