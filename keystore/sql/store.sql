-- The admin side of the store: what keystore.db, keystore.migrate and keystore.store ask.

-- name: store_info
SELECT store_id, role, incarnation, origin_id, token_prefix, as_of_change, as_of_at, replaying,
       created_at
FROM StoreInfo;

-- name: insert_store_info
INSERT INTO StoreInfo (store_info_id, store_id, role, incarnation, origin_id, token_prefix)
VALUES (1, :store_id, :role, :incarnation, :origin_id, :token_prefix);

-- name: plans
SELECT p.*, (SELECT count(*) FROM Accounts AS a WHERE a.plan_id = p.plan_id) AS accounts
FROM Plans AS p
WHERE :plan_id IS NULL OR p.plan_id = :plan_id
ORDER BY p.name;

-- name: accounts
SELECT a.*, p.name AS plan,
       (SELECT count(*) FROM APIKeys AS k WHERE k.account_id = a.account_id) AS keys
FROM Accounts AS a
LEFT JOIN Plans AS p ON p.plan_id = a.plan_id
WHERE :account_id IS NULL OR a.account_id = :account_id
ORDER BY a.email;

-- name: keys
SELECT k.api_key_id, k.api_key, k.account_id, a.email AS account, k.is_active, k.status,
       k.status_reason, k.label, k.expires_at, k.allowed_networks, k.metadata, k.created_at,
       k.updated_at
FROM APIKeys AS k
LEFT JOIN Accounts AS a ON a.account_id = k.account_id
WHERE (:account IS NULL OR a.email = :account)
ORDER BY k.api_key_id;

-- name: key
SELECT k.api_key_id, k.api_key, k.account_id, a.email AS account, k.is_active, k.status,
       k.status_reason, k.label, k.expires_at, k.allowed_networks, k.metadata, k.created_at,
       k.updated_at
FROM APIKeys AS k
LEFT JOIN Accounts AS a ON a.account_id = k.account_id
WHERE k.api_key = :api_key OR k.api_key_hash = :api_key_hash;

-- name: plan_id
SELECT plan_id FROM Plans WHERE name = ?;

-- name: account_id
SELECT account_id FROM Accounts WHERE email = ?;

-- name: revoke_key
UPDATE APIKeys SET is_active = 0, updated_at = CURRENT_TIMESTAMP WHERE api_key_id = ?;

-- name: sync_targets
SELECT target_id, url, acknowledged_change, acknowledged_usage, usage_only, synced_at,
       pending_token IS NOT NULL AS is_pending
FROM SyncTargets
WHERE url IS NOT NULL
ORDER BY sync_target_id;

-- name: usage_head
SELECT coalesce(max(usage_id), 0) FROM UsageLog;

-- name: usage_total
SELECT CAST(total(amount) AS INTEGER) FROM UsageLog;

-- name: schema
SELECT type, name, sql FROM sqlite_master
WHERE type IN ('table', 'trigger', 'index', 'view') AND sql IS NOT NULL;

-- name: quick_check
PRAGMA quick_check(1);

-- name: set_incarnation
UPDATE StoreInfo SET incarnation = ?;
