-- What keystore.sync.postgres asks of the hub.
-- {table} is the hub's table, {name} the store's, {id} the internal id, {columns} the columns,
-- {wire} the columns as wire values, {wire_types} the columns as they are staged, {values} what was
-- staged as the hub's types, {updates} the SET list, {old} and {new} the columns of both sides,
-- {digest} a row as keystore.sync.digest encodes it.
--
-- Rows travel as the store has them, numbers and text, and are converted here in SQL: in Python it
-- would cost more than the transfer. The session's time zone is UTC while that is done.

-- name: exists
SELECT to_regclass('keystore.hub_info') IS NOT NULL, to_regnamespace('keystore') IS NOT NULL;

-- name: lock_init
-- Two `keystore hub init` at once: the second waits, then finds the schema.
SELECT pg_advisory_xact_lock(7236837961);

-- name: server_encoding
SHOW server_encoding;

-- name: hub_info
SELECT hub_id::TEXT, schema_version FROM keystore.hub_info;

-- name: use_utc
SET LOCAL TIME ZONE 'UTC';

-- name: give_up_in_time
-- A pusher that hangs must not keep the next one out for ever: the server ends its transaction, and
-- the next one does not wait longer than that.
SELECT set_config('lock_timeout', '30s', TRUE),
       set_config('idle_in_transaction_session_timeout', '5min', TRUE);

-- name: register
INSERT INTO keystore.stores (store_id, incarnation, token_prefix, schema_version,
                             program_version, acknowledged_change)
VALUES (%(store_id)s, %(incarnation)s, %(token_prefix)s, %(schema_version)s,
        %(program_version)s, 0)
ON CONFLICT (store_id) DO NOTHING;

-- name: lock_store
SELECT acknowledged_change, push_token::TEXT
FROM keystore.stores
WHERE store_id = %(store_id)s
FOR UPDATE;

-- name: scan_joins
-- Off for an upsert of changes, which are few beside what is there: the planner would rather read the
-- whole of the hub's table than look them up. On again after it: without statistics of the temporary
-- tables, it might nest the other statements' loops the wrong way round.
SELECT set_config('enable_hashjoin', %(allowed)s, TRUE),
       set_config('enable_mergejoin', %(allowed)s, TRUE);

-- name: create_incoming
CREATE TEMP TABLE incoming_{table} ({wire_types}) ON COMMIT DROP;

-- name: create_incoming_deleted
CREATE TEMP TABLE incoming_deleted (table_name TEXT, record_id BIGINT) ON COMMIT DROP;

-- name: copy_incoming
COPY pg_temp.incoming_{table} ({columns}) FROM STDIN (FORMAT BINARY);

-- name: copy_incoming_deleted
COPY pg_temp.incoming_deleted (table_name, record_id) FROM STDIN (FORMAT BINARY);

-- name: forget_incoming
DELETE FROM pg_temp.incoming_{table} WHERE {id} = ANY(%(ids)s);

-- name: forget_incoming_deleted
DELETE FROM pg_temp.incoming_deleted WHERE table_name = %(name)s AND record_id = ANY(%(ids)s);

-- name: staged
SELECT {columns} FROM pg_temp.incoming_{table} ORDER BY {id};

-- name: delete_unnamed
INSERT INTO pg_temp.incoming_deleted (table_name, record_id)
SELECT '{name}', t.{id}
FROM keystore.{table} AS t
WHERE t.store_id = %(store_id)s
  AND NOT EXISTS (SELECT FROM pg_temp.incoming_{table} AS i WHERE i.{id} = t.{id});

-- name: upsert
-- (A row that is the same already keeps its stamp: no replica needs to get it again. Nobody else
-- writes this store's rows meanwhile, so the care that ON CONFLICT takes with each row is not needed.)
MERGE INTO keystore.{table} AS t
USING (SELECT {values} FROM pg_temp.incoming_{table}) AS i
ON t.store_id = %(store_id)s AND t.{id} = i.{id}
WHEN MATCHED AND ({old}) IS DISTINCT FROM ({new}) THEN
    UPDATE SET {updates}, changed_at_id = %(changed_at_id)s
WHEN NOT MATCHED THEN
    INSERT (store_id, {columns}, changed_at_id)
    VALUES (%(store_id)s, {new}, %(changed_at_id)s);

-- name: delete
WITH gone AS (
    DELETE FROM keystore.{table} AS t
    USING pg_temp.incoming_deleted AS d
    WHERE t.store_id = %(store_id)s AND d.table_name = '{name}' AND t.{id} = d.record_id
    RETURNING t.{id} AS record_id
)
INSERT INTO keystore.tombstones (store_id, table_name, record_id, changed_at_id)
SELECT %(store_id)s, '{name}', record_id, %(changed_at_id)s FROM gone
ON CONFLICT (store_id, table_name, record_id)
DO UPDATE SET changed_at_id = excluded.changed_at_id, deleted_at = now();

-- name: raise_dead
DELETE FROM keystore.tombstones AS t
USING pg_temp.incoming_{table} AS i
WHERE t.store_id = %(store_id)s AND t.table_name = '{name}' AND t.record_id = i.{id};

-- name: acknowledge
UPDATE keystore.stores SET
    incarnation = %(incarnation)s,
    token_prefix = %(token_prefix)s,
    schema_version = %(schema_version)s,
    acknowledged_change = %(acknowledged_change)s,
    push_token = %(push_token)s,
    as_of_at = %(as_of_at)s::TIMESTAMPTZ,
    program_version = %(program_version)s,
    seen_revocation = %(seen_revocation)s,
    last_seen_at = now()
WHERE store_id = %(store_id)s;

-- name: notify
SELECT pg_notify(%(channel)s, %(payload)s);

-- name: origins
SELECT store_id::TEXT FROM keystore.stores WHERE as_of_at IS NOT NULL ORDER BY created_at;

-- name: cut
SELECT s.store_id::TEXT, s.incarnation::TEXT, s.token_prefix, s.schema_version,
       s.acknowledged_change, left(s.as_of_at::TEXT, 19), s.tombstone_horizon
FROM keystore.stores AS s
WHERE s.store_id = %(store_id)s AND s.as_of_at IS NOT NULL;

-- name: rows_after
COPY (
    SELECT {wire} FROM keystore.{table}
    WHERE store_id = %(store_id)s AND changed_at_id > %(after)s
    ORDER BY {id}
) TO STDOUT (FORMAT BINARY);

-- name: rows_between
SELECT {wire} FROM keystore.{table}
WHERE store_id = %(store_id)s AND {id} BETWEEN %(first)s AND %(last)s
ORDER BY {id};

-- name: count_rows
SELECT count(*) FROM keystore.{table} WHERE store_id = %(store_id)s;

-- name: digests
SELECT {id} / %(size)s,
       encode(sha256(convert_to(string_agg({digest}, '' ORDER BY {id}), 'UTF8')), 'hex')
FROM (SELECT {wire} FROM keystore.{table} WHERE store_id = %(store_id)s) AS t
GROUP BY 1;

-- name: highest_id
SELECT greatest(
    coalesce((SELECT max({id}) FROM keystore.{table} WHERE store_id = %(store_id)s), 0),
    coalesce((SELECT max(record_id) FROM keystore.tombstones
              WHERE store_id = %(store_id)s AND table_name = '{name}'), 0));

-- name: deleted_after
SELECT table_name, array_agg(record_id ORDER BY record_id) FROM keystore.tombstones
WHERE store_id = %(store_id)s AND changed_at_id > %(after)s
GROUP BY table_name;

-- name: holds_usage
SELECT EXISTS (SELECT FROM keystore.usage_log
               WHERE store_id = %(store_id)s AND usage_id = %(usage_id)s AND nonce = %(nonce)s);

-- name: create_incoming_usage
CREATE TEMP TABLE incoming_usage (
    usage_id BIGINT, principal_type TEXT, principal_id BIGINT, account_id BIGINT, amount BIGINT,
    request_id TEXT, occurred_at TEXT, nonce BIGINT
) ON COMMIT DROP;

-- name: copy_incoming_usage
COPY pg_temp.incoming_usage (usage_id, principal_type, principal_id, account_id, amount,
                             request_id, occurred_at, nonce)
FROM STDIN (FORMAT BINARY);

-- name: insert_usage
INSERT INTO keystore.usage_log (store_id, origin_id, usage_id, principal_type, principal_id,
                                account_id, amount, request_id, occurred_at, nonce)
SELECT %(store_id)s, %(origin_id)s, usage_id, principal_type, principal_id, account_id, amount,
       request_id, occurred_at::TIMESTAMPTZ, nonce
FROM pg_temp.incoming_usage
ON CONFLICT (store_id, usage_id, nonce) DO NOTHING;

-- name: revocations
-- If the number that the caller knows is another key's by now, the hub was put back and has given it
-- again: then he gets all.
SELECT revocation_id, api_key::TEXT, reason,
       to_char(revoked_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS')
FROM keystore.revocations
WHERE store_id = %(store_id)s AND revocation_id > CASE
    WHEN EXISTS (SELECT FROM keystore.revocations
                 WHERE store_id = %(store_id)s AND revocation_id = %(after)s
                   AND api_key = %(last)s::UUID)
    THEN %(after)s ELSE 0 END
ORDER BY revocation_id;

-- name: key_owners
SELECT store_id::TEXT, api_key::TEXT FROM keystore.api_keys
WHERE api_key::TEXT = %(key)s OR api_key_hash = %(hash)s
ORDER BY store_id;

-- name: next_revocation
INSERT INTO keystore.revocation_heads AS h (store_id, head) VALUES (%(store_id)s, 1)
ON CONFLICT (store_id) DO UPDATE SET head = h.head + 1
RETURNING head;

-- name: add_revocation
INSERT INTO keystore.revocations (store_id, api_key, revocation_id, reason)
VALUES (%(store_id)s, %(api_key)s, %(revocation_id)s, %(reason)s)
ON CONFLICT (store_id, api_key) DO NOTHING
RETURNING revocation_id;

-- name: revocation
SELECT revocation_id, api_key::TEXT, reason,
       to_char(revoked_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS')
FROM keystore.revocations
WHERE store_id = %(store_id)s AND api_key = %(api_key)s;

-- name: is_restricted
SELECT row_security_active('keystore.replicas');

-- name: claim
INSERT INTO keystore.grants (store_id, role_name, access)
VALUES (%(store_id)s, current_user, 'own')
ON CONFLICT DO NOTHING;

-- name: check_in
INSERT INTO keystore.replicas AS r (store_id, incarnation, origin_id, token, schema_version,
                                    program_version, as_of_change, as_of_at, seen_revocation)
VALUES (%(store_id)s, %(incarnation)s, %(origin_id)s, %(token)s, %(schema_version)s,
        %(program_version)s, %(as_of_change)s, (%(as_of_at)s || '+00')::TIMESTAMPTZ,
        %(seen_revocation)s)
ON CONFLICT (store_id, incarnation) DO UPDATE SET
    origin_id = excluded.origin_id,
    token = excluded.token,
    schema_version = excluded.schema_version,
    program_version = excluded.program_version,
    as_of_change = excluded.as_of_change,
    as_of_at = excluded.as_of_at,
    seen_revocation = excluded.seen_revocation,
    last_seen_at = now()
WHERE r.token IN (%(last)s, %(token)s) OR r.token < %(last)s
RETURNING token;
