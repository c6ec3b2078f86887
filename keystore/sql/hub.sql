-- What keystore.sync.postgres asks of the hub.
-- {table} is the hub's table, {name} the store's, {id} the internal id, {columns} the columns,
-- {wire} the columns as wire values, {typed} the columns with their types, {updates} the SET list.

-- name: exists
SELECT to_regclass('keystore.hub_info') IS NOT NULL, to_regnamespace('keystore') IS NOT NULL;

-- name: lock_init
-- Two `keystore hub init` at once: the second waits, then finds the schema.
SELECT pg_advisory_xact_lock(7236837961);

-- name: server_encoding
SHOW server_encoding;

-- name: hub_info
SELECT hub_id::TEXT, schema_version FROM keystore.hub_info;

-- name: register
INSERT INTO keystore.stores (store_id, incarnation, token_prefix, schema_version,
                             acknowledged_change)
VALUES (%(store_id)s, %(incarnation)s, %(token_prefix)s, %(schema_version)s, 0)
ON CONFLICT (store_id) DO NOTHING;

-- name: lock_store
SELECT acknowledged_change, push_token::TEXT
FROM keystore.stores
WHERE store_id = %(store_id)s
FOR UPDATE;

-- name: create_incoming
CREATE TEMP TABLE incoming_{table} ({typed}) ON COMMIT DROP;

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

-- name: count_incoming
SELECT count(*) FROM pg_temp.incoming_{table};

-- name: delete_unnamed
INSERT INTO pg_temp.incoming_deleted (table_name, record_id)
SELECT '{name}', t.{id}
FROM keystore.{table} AS t
WHERE t.store_id = %(store_id)s
  AND NOT EXISTS (SELECT FROM pg_temp.incoming_{table} AS i WHERE i.{id} = t.{id});

-- name: upsert
INSERT INTO keystore.{table} (store_id, {columns}, changed_at_id)
SELECT %(store_id)s, {columns}, %(changed_at_id)s FROM pg_temp.incoming_{table}
ON CONFLICT (store_id, {id}) DO UPDATE SET {updates}, changed_at_id = excluded.changed_at_id;

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
    as_of_at = %(as_of_at)s,
    last_seen_at = now()
WHERE store_id = %(store_id)s;

-- name: origins
SELECT store_id::TEXT FROM keystore.stores WHERE push_token IS NOT NULL ORDER BY created_at;

-- name: cut
SELECT s.store_id::TEXT, s.incarnation::TEXT, s.token_prefix, s.schema_version,
       s.acknowledged_change,
       to_char(s.as_of_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS')
FROM keystore.stores AS s
WHERE s.store_id = %(store_id)s AND s.push_token IS NOT NULL;

-- name: rows_after
SELECT {wire} FROM keystore.{table}
WHERE store_id = %(store_id)s AND changed_at_id > %(after)s
ORDER BY {id};

-- name: count_rows
SELECT count(*) FROM keystore.{table} WHERE store_id = %(store_id)s;

-- name: deleted_after
SELECT record_id FROM keystore.tombstones
WHERE store_id = %(store_id)s AND table_name = '{name}' AND changed_at_id > %(after)s
ORDER BY record_id;

-- name: usage_held
SELECT coalesce(max(usage_id), 0) FROM keystore.usage_log WHERE store_id = %(store_id)s;

-- name: create_incoming_usage
CREATE TEMP TABLE incoming_usage (
    usage_id BIGINT, principal_type TEXT, principal_id BIGINT, account_id BIGINT, amount BIGINT,
    request_id TEXT, occurred_at TIMESTAMPTZ
) ON COMMIT DROP;

-- name: copy_incoming_usage
COPY pg_temp.incoming_usage (usage_id, principal_type, principal_id, account_id, amount,
                             request_id, occurred_at)
FROM STDIN (FORMAT BINARY);

-- name: insert_usage
INSERT INTO keystore.usage_log (store_id, origin_id, usage_id, principal_type, principal_id,
                                account_id, amount, request_id, occurred_at)
SELECT %(store_id)s, %(origin_id)s, usage_id, principal_type, principal_id, account_id, amount,
       request_id, occurred_at
FROM pg_temp.incoming_usage
ON CONFLICT (store_id, usage_id) DO NOTHING;

-- name: contradicting_usage
-- Rows that were there already with another content: two files record under one store_id.
SELECT u.usage_id
FROM pg_temp.incoming_usage AS i
JOIN keystore.usage_log AS u ON u.store_id = %(store_id)s AND u.usage_id = i.usage_id
WHERE (u.origin_id, u.principal_type, u.principal_id, u.account_id, u.amount, u.request_id,
       u.occurred_at)
      IS DISTINCT FROM
      (%(origin_id)s::UUID, i.principal_type, i.principal_id, i.account_id, i.amount,
       i.request_id, i.occurred_at)
ORDER BY u.usage_id
LIMIT 1;
