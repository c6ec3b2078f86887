-- What keystore.sync.postgres and the hub_ modules beside it ask of the hub.
-- {table} is the hub's table, {name} the store's, {id} the internal id, {columns} the columns,
-- {wire} the columns as wire values, {wire_types} the columns as they are staged, {values} what was
-- staged as the hub's types, {updates} and {excluded} the SET lists, {old} and {new} both sides' columns,
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
-- the next one does not wait longer than that. In the middle of a COPY only TCP notices who is gone.
SELECT set_config('lock_timeout', '30s', TRUE),
       set_config('tcp_keepalives_idle', '60', TRUE),
       set_config('tcp_keepalives_interval', '10', TRUE),
       set_config('tcp_keepalives_count', '6', TRUE),
       set_config('idle_in_transaction_session_timeout', '5min', TRUE);

-- name: register
INSERT INTO keystore.stores (store_id, incarnation, token_prefix, schema_version,
                             program_version, acknowledged_change)
VALUES (%(store_id)s, %(incarnation)s, %(token_prefix)s, %(schema_version)s,
        %(program_version)s, 0)
ON CONFLICT (store_id) DO NOTHING;

-- name: lock_store
SELECT acknowledged_change, push_token::TEXT, tombstone_horizon
FROM keystore.stores
WHERE store_id = %(store_id)s
FOR UPDATE;

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
-- What has changed: by its key, one by one. Each row gets the new stamp, also where nothing differs: a
-- replica may have seen, elsewhere or before this hub was put back, what the row was in between.
INSERT INTO keystore.{table} AS t (store_id, {columns}, changed_at_id)
SELECT %(store_id)s, {values}, %(changed_at_id)s FROM pg_temp.incoming_{table}
ON CONFLICT (store_id, {id}) DO UPDATE SET {excluded}, changed_at_id = excluded.changed_at_id;

-- name: merge
-- Everything: one join with what is there. A row that is the same already keeps its stamp. Nobody else
-- writes this store's rows meanwhile, so the care that ON CONFLICT takes with each row is not needed.
MERGE INTO keystore.{table} AS t
USING (SELECT {values} FROM pg_temp.incoming_{table}) AS i
ON t.store_id = %(store_id)s AND t.{id} = i.{id}
WHEN MATCHED AND ({old}) IS DISTINCT FROM ({new}) THEN
    UPDATE SET {updates}, changed_at_id = %(changed_at_id)s
WHEN NOT MATCHED THEN
    INSERT (store_id, {columns}, changed_at_id)
    VALUES (%(store_id)s, {new}, %(changed_at_id)s);

-- name: delete
DELETE FROM keystore.{table} AS t
USING pg_temp.incoming_deleted AS d
WHERE t.store_id = %(store_id)s AND d.table_name = '{name}' AND t.{id} = d.record_id;

-- name: bury
-- Also what was not here: a replica may have it from elsewhere, or from before this hub was put back.
INSERT INTO keystore.tombstones (store_id, table_name, record_id, changed_at_id)
SELECT DISTINCT %(store_id)s::UUID, table_name, record_id, %(changed_at_id)s::BIGINT
FROM pg_temp.incoming_deleted
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
    -- who pushes everything does not name what was deleted before
    tombstone_horizon = CASE WHEN %(is_whole)s THEN %(acknowledged_change)s
                        ELSE tombstone_horizon END,
    push_token = %(push_token)s,
    record_counts = %(record_counts)s,
    as_of_at = %(as_of_at)s::TIMESTAMPTZ,
    program_version = %(program_version)s,
    seen_revocation = least(%(seen_revocation)s, (
        SELECT coalesce(max(revocation_id), 0) FROM keystore.revocations
        WHERE store_id = %(store_id)s)),
    last_seen_at = now()
WHERE store_id = %(store_id)s
RETURNING store_id;

-- name: notify
SELECT pg_notify(%(channel)s, %(payload)s);

-- name: listen
LISTEN {channel};

-- name: origins
SELECT store_id::TEXT FROM keystore.stores WHERE as_of_at IS NOT NULL ORDER BY created_at;

-- name: cut
SELECT s.store_id::TEXT, s.incarnation::TEXT, s.token_prefix, s.schema_version,
       s.acknowledged_change, left(s.as_of_at::TEXT, 19), s.tombstone_horizon, s.record_counts
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
    usage_id BIGINT, principal_type TEXT, principal_id BIGINT, account_id BIGINT, service_id BIGINT,
    amount BIGINT, request_id TEXT, occurred_at TEXT, nonce BIGINT
) ON COMMIT DROP;

-- name: copy_incoming_usage
COPY pg_temp.incoming_usage (usage_id, principal_type, principal_id, account_id, service_id, amount,
                             request_id, occurred_at, nonce)
FROM STDIN (FORMAT BINARY);

-- name: insert_usage
INSERT INTO keystore.usage_log (store_id, origin_id, usage_id, principal_type, principal_id,
                                account_id, service_id, amount, request_id, occurred_at, nonce)
SELECT %(store_id)s, %(origin_id)s, usage_id, principal_type, principal_id, account_id,
       service_id, amount, request_id, occurred_at::TIMESTAMPTZ, nonce
FROM pg_temp.incoming_usage
ON CONFLICT (store_id, usage_id, nonce) DO NOTHING;

-- name: holds_ledger
SELECT EXISTS (SELECT FROM keystore.credit_ledger
               WHERE store_id = %(store_id)s AND ledger_id = %(ledger_id)s AND nonce = %(nonce)s);

-- name: create_incoming_ledger
CREATE TEMP TABLE incoming_ledger (
    ledger_id BIGINT, account_id BIGINT, kind TEXT, amount_nano BIGINT, balance_nano BIGINT,
    request_id TEXT, note TEXT, model TEXT, model_pricing_id BIGINT, input_tokens BIGINT,
    output_tokens BIGINT, usage_id BIGINT, occurred_at TEXT, nonce BIGINT
) ON COMMIT DROP;

-- name: copy_incoming_ledger
COPY pg_temp.incoming_ledger (ledger_id, account_id, kind, amount_nano, balance_nano, request_id, note,
                              model, model_pricing_id, input_tokens, output_tokens, usage_id,
                              occurred_at, nonce)
FROM STDIN (FORMAT BINARY);

-- name: insert_ledger
INSERT INTO keystore.credit_ledger (store_id, ledger_id, account_id, kind, amount_nano, balance_nano,
                                    request_id, note, model, model_pricing_id, input_tokens,
                                    output_tokens, usage_id, occurred_at, nonce)
SELECT %(store_id)s, ledger_id, account_id, kind, amount_nano, balance_nano, request_id, note, model,
       model_pricing_id, input_tokens, output_tokens, usage_id, occurred_at::TIMESTAMPTZ, nonce
FROM pg_temp.incoming_ledger
ON CONFLICT (store_id, ledger_id, nonce) DO NOTHING;

-- name: account_totals
-- What each account has used of each service, wherever that was, and what its ledger sums to: a row for
-- each service, and one without for what names none; an account that has only credits has one row.
-- (Sums of BIGINT are NUMERIC: they cannot overflow.)
WITH used AS (
    SELECT origin_id, account_id, service_id, sum(amount) AS units, count(DISTINCT store_id) AS stores
    FROM keystore.usage_log
    GROUP BY origin_id, account_id, service_id
), balances AS (
    SELECT store_id AS origin_id, account_id, sum(amount_nano) AS balance
    FROM keystore.credit_ledger
    GROUP BY store_id, account_id
), known AS (
    SELECT origin_id, account_id FROM used
    UNION
    SELECT origin_id, account_id FROM balances
)
SELECT k.origin_id::TEXT, k.account_id, a.email, u.service_id, s.name,
       coalesce(u.units, 0), coalesce(u.stores, 0), b.balance
FROM known AS k
LEFT JOIN used AS u ON u.origin_id = k.origin_id AND u.account_id IS NOT DISTINCT FROM k.account_id
LEFT JOIN balances AS b ON b.origin_id = k.origin_id AND b.account_id = k.account_id
LEFT JOIN keystore.accounts AS a ON a.store_id = k.origin_id AND a.account_id = k.account_id
LEFT JOIN keystore.services AS s ON s.store_id = k.origin_id AND s.service_id = u.service_id
ORDER BY k.origin_id, k.account_id, u.service_id NULLS FIRST;

-- name: consumption
-- The stores by a loose scan of the index, one probe each, and of each what is later than was settled. A
-- replica may say anything: no amount is below zero, no sum is too large, and every time has a year.
WITH RECURSIVE stores AS (
    (SELECT store_id FROM keystore.usage_log
     WHERE origin_id = %(origin_id)s AND principal_type = 'api_key' AND service_id IS NOT NULL
     ORDER BY store_id
     LIMIT 1)
    UNION ALL
    SELECT (SELECT l.store_id FROM keystore.usage_log AS l
            WHERE l.origin_id = %(origin_id)s AND l.store_id > s.store_id
              AND l.principal_type = 'api_key' AND l.service_id IS NOT NULL
            ORDER BY l.store_id
            LIMIT 1)
    FROM stores AS s
    WHERE s.store_id IS NOT NULL
), known AS (
    SELECT * FROM unnest(%(stores)s::UUID[], %(settled)s::BIGINT[]) AS k (store_id, usage_id)
)
SELECT s.store_id::TEXT, u.up_to, u.principal_id, u.service_id,
       to_char(u.hour, 'YYYY-MM-DD HH24:00:00'), u.amount
FROM stores AS s
LEFT JOIN known AS k ON k.store_id = s.store_id
CROSS JOIN LATERAL (
    SELECT max(l.usage_id) AS up_to, l.principal_id, l.service_id,
           date_trunc('hour', least(greatest(l.occurred_at, '1000-01-02 UTC'), '2999-12-30 UTC')
                              AT TIME ZONE 'UTC') AS hour,
           least(sum(greatest(l.amount, 0)), 4611686018427387904)::BIGINT AS amount
    FROM keystore.usage_log AS l
    WHERE l.origin_id = %(origin_id)s AND l.store_id = s.store_id
      AND l.usage_id > coalesce(k.usage_id, 0)
      AND l.principal_type = 'api_key' AND l.service_id IS NOT NULL
    GROUP BY 2, 3, 4
) AS u
WHERE s.store_id <> %(origin_id)s
ORDER BY s.store_id;

-- name: revocations
-- If the number that the caller knows is not that key's here, the hub was put back: then he gets all.
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
WHERE api_key = %(api_key)s::UUID OR api_key_hash = %(api_key_hash)s
ORDER BY store_id;

-- name: next_revocation
-- From the clock, so that a hub that was put back to an earlier state does not give a number again:
-- who knows the lost one would take it for what he has. By one more, where the clock was put back.
INSERT INTO keystore.revocation_heads AS h (store_id, head)
VALUES (%(store_id)s, (extract(epoch FROM clock_timestamp()) * 1000000)::BIGINT)
ON CONFLICT (store_id) DO UPDATE SET head = greatest(h.head + 1, excluded.head)
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
-- (least: numbers that a hub forgot when it was put back are no receipts for those it gives anew)
INSERT INTO keystore.replicas AS r (store_id, incarnation, origin_id, token, schema_version,
                                    program_version, as_of_change, as_of_at, seen_revocation)
VALUES (%(store_id)s, %(incarnation)s, %(origin_id)s, %(token)s, %(schema_version)s,
        %(program_version)s, %(as_of_change)s, (%(as_of_at)s || '+00')::TIMESTAMPTZ,
        least(%(seen_revocation)s, (SELECT coalesce(max(revocation_id), 0)
                                    FROM keystore.revocations WHERE store_id = %(origin_id)s)))
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

-- name: fleet
-- Ages by the hub's clock. as_of_at is of the origin's: should that be ahead, one of the two is off
-- by the difference, and the data may be that old. What a store says of itself may be any number and
-- any time, infinity included: it must not keep the owner from seeing the others.
WITH told AS (
    SELECT store_id, incarnation, 'origin' AS role, store_id AS origin_id, program_version,
           schema_version, acknowledged_change AS as_of_change, as_of_at, seen_revocation,
           last_seen_at
    FROM keystore.stores
    UNION ALL
    SELECT store_id, incarnation, 'replica', origin_id, program_version,
           schema_version, as_of_change, as_of_at, seen_revocation, last_seen_at
    FROM keystore.replicas
), members AS (
    SELECT store_id, incarnation, role, origin_id, program_version, schema_version, as_of_change,
           CASE WHEN as_of_at IS NOT NULL
                THEN least(greatest(as_of_at, '1000-01-01 UTC'), '2999-12-31 UTC') END AS as_of_at,
           seen_revocation,
           least(greatest(last_seen_at, '1000-01-01 UTC'), '2999-12-31 UTC') AS last_seen_at
    FROM told
), aged AS (
    SELECT m.*,
           CASE WHEN o.as_of_at IS NOT NULL
                THEN least(greatest(o.acknowledged_change::NUMERIC - m.as_of_change,
                                    -9223372036854775808),
                           9223372036854775807)::BIGINT END AS behind,
           abs(extract(EPOCH FROM now() - m.as_of_at))::FLOAT8 AS age,
           greatest(extract(EPOCH FROM now() - m.last_seen_at), 0)::FLOAT8 AS silent,
           (SELECT count(*) FROM keystore.revocations AS r
            WHERE r.store_id = m.origin_id AND r.revocation_id > m.seen_revocation) AS missing,
           (SELECT min(p.max_staleness_seconds) FROM keystore.plans AS p
            WHERE p.store_id = m.origin_id) AS bound
    FROM members AS m
    LEFT JOIN keystore.stores AS o ON o.store_id = m.origin_id
)
SELECT store_id::TEXT, incarnation::TEXT, role, origin_id::TEXT, program_version, schema_version,
       CASE WHEN as_of_at IS NOT NULL THEN as_of_change END,
       to_char(as_of_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS'),
       behind, age,
       to_char(last_seen_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS'), silent,
       seen_revocation, missing, coalesce(age > bound, FALSE) OR silent > %(stale_after)s
FROM aged
ORDER BY origin_id, role, store_id, incarnation;

-- name: receipts
SELECT r.store_id::TEXT, r.revocation_id, r.api_key::TEXT, r.reason,
       to_char(r.revoked_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS'),
       greatest(extract(EPOCH FROM now() - r.revoked_at), 0)::FLOAT8
FROM keystore.revocations AS r
WHERE %(api_key_hash)s::TEXT IS NULL OR r.api_key = %(api_key)s::UUID OR EXISTS (
    SELECT FROM keystore.api_keys AS k
    WHERE k.store_id = r.store_id AND k.api_key = r.api_key AND k.api_key_hash = %(api_key_hash)s)
ORDER BY r.revoked_at DESC, r.store_id, r.revocation_id DESC;

-- name: forget_replica
DELETE FROM keystore.replicas WHERE store_id = %(store_id)s RETURNING incarnation;

-- name: is_origin
SELECT EXISTS (SELECT FROM keystore.stores WHERE store_id = %(store_id)s);

-- name: stores
SELECT store_id::TEXT FROM keystore.stores ORDER BY created_at, store_id;

-- name: hold
-- The earliest change that a live replica has, and who is there; none if all are up to date.
-- clock_timestamp, because we may have waited for a push. Who called later than now is not counted, or
-- a wrong clock would hold for ever; nor who is behind the horizon already: he gets everything.
WITH live AS (
    SELECT store_id, as_of_change FROM keystore.replicas
    WHERE origin_id = %(store_id)s
      AND as_of_change >= %(horizon)s AND as_of_change < %(acknowledged)s
      AND last_seen_at BETWEEN
          clock_timestamp() - make_interval(secs => %(lease)s::DOUBLE PRECISION)
          AND clock_timestamp()
)
SELECT as_of_change, array_agg(DISTINCT store_id::TEXT) FROM live
GROUP BY as_of_change
ORDER BY as_of_change
LIMIT 1;

-- name: forget_tombstones
-- The highest id of each table stays: it says which ids have been given away, should an older copy
-- of the origin have to go on (`keystore sync --reconcile`).
WITH highest AS (
    SELECT table_name, max(record_id) AS record_id FROM keystore.tombstones
    WHERE store_id = %(store_id)s
    GROUP BY table_name
), gone AS (
    DELETE FROM keystore.tombstones AS t
    USING highest AS h
    WHERE t.store_id = %(store_id)s AND t.changed_at_id <= %(horizon)s
      AND t.table_name = h.table_name AND t.record_id < h.record_id
    RETURNING t.record_id
)
SELECT count(*) FROM gone;

-- name: count_tombstones
SELECT count(*) FROM keystore.tombstones WHERE store_id = %(store_id)s;

-- name: set_horizon
UPDATE keystore.stores SET tombstone_horizon = %(horizon)s WHERE store_id = %(store_id)s;
