-- The same as before, faster where a group is one commit of new records: what all rows share is not looked for in an
-- array for each of them. Both versions do the same, so servers of before and after may run side by side.
CREATE OR REPLACE FUNCTION apply_group_1(
    now_us bigint,
    h_dataset bigint[], h_version bigint[], h_revision bigint[], h_commit_id bytea[], h_count bigint[],
    h_digest bytea[], h_time bigint[], h_position bigint[],
    v_dataset bigint[], v_revision bigint[], v_commit_id bytea[], v_time bigint[], v_key text[], v_source bigint[],
    v_reason smallint[], v_puts bigint[], v_deletes bigint[],
    c_tag bigint[], c_position bigint[], c_record_id text, c_data text, c_hash bytea,
    some_known boolean, some_new boolean,
    g_dataset bigint[], g_position bigint[],
    o_dataset bigint[], o_record_id text[], o_source bigint[],
    q_id text[], q_fingerprint bytea[], q_until bigint[], q_revision bigint[], q_changed boolean[], q_statuses bytea[],
    q_record_ids text[], q_created bigint[], q_updated bigint[], q_unchanged bigint[], q_deleted bigint[],
    q_calls bigint[], q_kept bigint[],
    s_number bigint[],
    p_number bigint[], p_sequence bigint[],
    t_session text[], t_calls bigint[], t_records bigint[]
) RETURNS boolean LANGUAGE plpgsql
SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
DECLARE
    found_version bigint;
    ids text[];
    one_dataset bigint;
    one_revision bigint;
    one_time bigint;
    one_reason smallint;
    one_source bigint;
    before bigint;
BEGIN
    FOR i IN 1 .. cardinality(h_dataset) LOOP
        SELECT version INTO found_version FROM head WHERE dataset_number = h_dataset[i] FOR UPDATE;
        IF found_version IS DISTINCT FROM h_version[i] THEN
            RETURN false;
        END IF;
    END LOOP;
    IF cardinality(g_position) > 0 THEN
        DELETE FROM record r USING unnest(g_position) WITH ORDINALITY g (position, number)
        WHERE r.dataset_number = coalesce(g_dataset[g.number], g_dataset[1]) AND r.position = g.position;
    END IF;
    IF cardinality(v_revision) > 0 THEN
        ids := string_to_array(c_record_id, E'\n');
        IF cardinality(v_revision) = 1 AND cardinality(c_tag) = 1 AND cardinality(c_position) = 1 AND NOT some_known
            AND c_tag[1] & 4 = 0
        THEN
            one_dataset := v_dataset[1];
            one_revision := v_revision[1];
            one_time := v_time[1];
            one_reason := v_reason[1];
            one_source := v_source[1];
            before := c_position[1] - 1;
            INSERT INTO record (dataset_number, position, revision, commit_time_us, reason, record_id, data)
            SELECT one_dataset, before + number, one_revision, one_time, one_reason, u.record_id,
                   convert_to(u.data, 'UTF8')
            FROM unnest(ids, string_to_array(c_data, E'\n')) WITH ORDINALITY u (record_id, data, number);
            INSERT INTO entry (dataset_number, record_id, position, revision, source_number, create_time_us, hash)
            SELECT one_dataset, u.record_id, before + number, one_revision, one_source, one_time,
                   substr(c_hash, number::integer * 16 - 15, 16)
            FROM unnest(ids) WITH ORDINALITY u (record_id, number);
        ELSE
            INSERT INTO record (dataset_number, position, revision, commit_time_us, reason, record_id, data)
            SELECT v_dataset[c.tag / 8], c.position, v_revision[c.tag / 8], v_time[c.tag / 8], v_reason[c.tag / 8],
                   c.record_id, CASE WHEN c.tag & 4 = 0 THEN convert_to(c.data, 'UTF8') END
            FROM (SELECT coalesce(c_tag[number], c_tag[1]) AS tag,
                         coalesce(c_position[number], c_position[1] + number - 1) AS position, record_id, data
                  FROM unnest(ids, string_to_array(c_data, E'\n')) WITH ORDINALITY u (record_id, data, number)) c;
            IF some_known THEN
                UPDATE entry e SET position = c.position, revision = v_revision[c.tag / 8],
                    source_number = v_source[c.tag / 8],
                    hash = CASE WHEN c.tag & 4 = 0 THEN substr(c_hash, c.number * 16 - 15, 16) END,
                    create_time_us = CASE WHEN c.tag & 2 = 0 THEN v_time[c.tag / 8] ELSE e.create_time_us END
                FROM (SELECT coalesce(c_tag[number], c_tag[1]) AS tag,
                             coalesce(c_position[number], c_position[1] + number - 1) AS position, record_id,
                             number::integer
                      FROM unnest(ids) WITH ORDINALITY u (record_id, number)) c
                WHERE c.tag & 1 = 1 AND e.dataset_number = v_dataset[c.tag / 8] AND e.record_id = c.record_id;
            END IF;
            IF some_new THEN
                INSERT INTO entry (dataset_number, record_id, position, revision, source_number, create_time_us, hash)
                SELECT v_dataset[c.tag / 8], c.record_id, c.position, v_revision[c.tag / 8], v_source[c.tag / 8],
                       v_time[c.tag / 8], CASE WHEN c.tag & 4 = 0 THEN substr(c_hash, c.number * 16 - 15, 16) END
                FROM (SELECT coalesce(c_tag[number], c_tag[1]) AS tag,
                             coalesce(c_position[number], c_position[1] + number - 1) AS position, record_id,
                             number::integer
                      FROM unnest(ids) WITH ORDINALITY u (record_id, number)) c
                WHERE c.tag & 1 = 0;
            END IF;
        END IF;
        INSERT INTO revision (dataset_number, revision, commit_id, commit_time_us, key_id, source_number, reason, puts,
            deletes)
        SELECT * FROM unnest(v_dataset, v_revision, v_commit_id, v_time, v_key, v_source, v_reason, v_puts, v_deletes);
    END IF;
    IF cardinality(o_source) > 0 THEN
        UPDATE entry e SET source_number = o.source_number
        FROM unnest(o_dataset, o_record_id, o_source) o (dataset_number, record_id, source_number)
        WHERE e.dataset_number = o.dataset_number AND e.record_id = o.record_id;
    END IF;
    IF cardinality(q_id) > 0 THEN
        INSERT INTO request (request_id, fingerprint, remember_until_us, revision, changed, statuses, record_ids,
            created, updated, unchanged, deleted, calls, kept)
        SELECT * FROM unnest(q_id, q_fingerprint, q_until, q_revision, q_changed, q_statuses, q_record_ids, q_created,
            q_updated, q_unchanged, q_deleted, q_calls, q_kept);
    END IF;
    UPDATE source SET last_received_us = now_us WHERE number = ANY (s_number);
    IF cardinality(p_number) > 0 THEN
        UPDATE producer SET last_sequence = p.last_sequence, last_received_us = now_us
        FROM unnest(p_number, p_sequence) p (number, last_sequence) WHERE producer.number = p.number;
    END IF;
    IF cardinality(t_session) > 0 THEN
        UPDATE session SET calls = t.calls, records = t.records, active_time_us = now_us
        FROM unnest(t_session, t_calls, t_records) t (session_id, calls, records)
        WHERE session.session_id = t.session_id;
    END IF;
    FOR i IN 1 .. cardinality(h_dataset) LOOP
        UPDATE head SET version = version + 1, revision = h_revision[i], commit_id = h_commit_id[i],
            record_count = h_count[i], digest = h_digest[i], commit_time_us = h_time[i], last_position = h_position[i]
        WHERE dataset_number = h_dataset[i];
    END LOOP;
    RETURN true;
END
$$;
