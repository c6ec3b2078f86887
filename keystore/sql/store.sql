-- What keystore.db, keystore.migrate, keystore.backup, keystore.store and the rooms of keystore.admin ask.

-- name: store_info
SELECT store_id, role, incarnation, origin_id, token_prefix, as_of_change, as_of_at,
       origin_incarnation, valid_until, max_offline_seconds, clock_mark, replaying, log_horizon,
       compacted_to, created_at
FROM StoreInfo;

-- name: insert_store_info
INSERT INTO StoreInfo (store_info_id, store_id, role, incarnation, origin_id, token_prefix)
VALUES (1, :store_id, :role, :incarnation, :origin_id, :token_prefix);

-- name: take_identity
UPDATE StoreInfo SET
    store_id = :store_id,
    incarnation = :incarnation,
    clock_mark = NULL,
    log_horizon = 0,
    compacted_to = 0,
    created_at = CURRENT_TIMESTAMP;

-- name: plans
SELECT p.*, (SELECT count(*) FROM Accounts AS a WHERE a.plan_id = p.plan_id) AS accounts
FROM Plans AS p
WHERE :plan_id IS NULL OR p.plan_id = :plan_id
ORDER BY p.name;

-- name: accounts
SELECT a.*, p.name AS plan,
       (SELECT count(*) FROM APIKeys AS k WHERE k.account_id = a.account_id) AS keys,
       (SELECT count(*) FROM OAuthClients AS c WHERE c.account_id = a.account_id) AS clients
FROM Accounts AS a
LEFT JOIN Plans AS p ON p.plan_id = a.plan_id
WHERE :account_id IS NULL OR a.account_id = :account_id
ORDER BY a.email;

-- name: keys
-- What was revoked at a hub is revoked, though a replica's row is its origin's.
SELECT k.api_key_id, k.api_key, k.account_id, a.email AS account,
       k.is_active AND r.api_key IS NULL AS is_active,
       iif(r.api_key IS NULL, k.status, 'revoked') AS status,
       iif(r.api_key IS NULL OR k.status = 'revoked', k.status_reason, r.reason) AS status_reason,
       k.label, k.expires_at, k.allowed_networks, k.metadata, k.created_at, k.updated_at
FROM APIKeys AS k
LEFT JOIN Accounts AS a ON a.account_id = k.account_id
LEFT JOIN Revocations AS r ON r.api_key = k.api_key
WHERE (:account IS NULL OR a.email = :account)
  AND (:status IS NULL OR iif(r.api_key IS NULL, k.status, 'revoked') = :status)
ORDER BY k.api_key_id;

-- name: key
-- By its UUID rather than by its token, which in another system may have been what is a UUID here.
SELECT k.api_key_id, k.api_key, k.account_id, a.email AS account,
       k.is_active AND r.api_key IS NULL AS is_active,
       iif(r.api_key IS NULL, k.status, 'revoked') AS status,
       iif(r.api_key IS NULL OR k.status = 'revoked', k.status_reason, r.reason) AS status_reason,
       k.label, k.expires_at, k.allowed_networks, k.metadata, k.created_at, k.updated_at
FROM APIKeys AS k
LEFT JOIN Accounts AS a ON a.account_id = k.account_id
LEFT JOIN Revocations AS r ON r.api_key = k.api_key
WHERE k.api_key = :api_key OR k.api_key_hash = :api_key_hash
ORDER BY k.api_key IS NOT :api_key;

-- name: plan_id
SELECT plan_id FROM Plans WHERE name = ?;

-- name: plan_names
SELECT name FROM Plans;

-- name: account_id
SELECT account_id FROM Accounts WHERE email = ?;

-- name: account_names
SELECT email FROM Accounts;

-- name: clients
SELECT c.oauth_client_id, c.client_id, c.account_id, a.email AS account, c.is_active, c.created_at,
       c.updated_at
FROM OAuthClients AS c
LEFT JOIN Accounts AS a ON a.account_id = c.account_id
WHERE (:client_id IS NULL OR c.client_id = :client_id)
  AND (:account IS NULL OR a.email = :account)
ORDER BY c.oauth_client_id;

-- name: client_id
SELECT oauth_client_id FROM OAuthClients WHERE client_id = ?;

-- name: client_names
SELECT client_id FROM OAuthClients;

-- name: plan_users
SELECT email FROM Accounts WHERE plan_id = ? ORDER BY email LIMIT 3;

-- name: service_id
SELECT service_id FROM Services WHERE name = ?;

-- name: service_names
SELECT name FROM Services;

-- name: services
SELECT s.*, (SELECT count(*) FROM APIKeyServiceQuotas AS q WHERE q.service_id = s.service_id) AS keys
FROM Services AS s
WHERE :service_id IS NULL OR s.service_id = :service_id
ORDER BY s.name;

-- name: status_id
SELECT status_id FROM APIKeyStatuses WHERE name = ?;

-- name: provider_id
SELECT provider_id FROM Providers WHERE name = ?;

-- name: provider_names
SELECT name FROM Providers;

-- name: model_id
SELECT model_id FROM Models WHERE name = ?;

-- name: model_names
SELECT name FROM Models;

-- name: status_names
SELECT name FROM APIKeyStatuses;

-- name: statuses
SELECT s.*, (SELECT count(*) FROM APIKeys AS k WHERE k.status = s.name) AS keys
FROM APIKeyStatuses AS s
ORDER BY s.status_id;

-- name: history
-- The status timeline of a key, newest first. That it was made is told by the key itself.
SELECT status, old_status, reason, occurred_at
FROM (
    SELECT event_id, status, old_status, reason, occurred_at
    FROM APIKeyStatusEvents
    WHERE api_key = :api_key
    UNION ALL
    SELECT 0, coalesce((SELECT e.old_status FROM APIKeyStatusEvents AS e
                        WHERE e.api_key = k.api_key ORDER BY e.event_id LIMIT 1), k.status),
           NULL, 'issued', k.created_at
    FROM APIKeys AS k
    WHERE k.api_key = :api_key
)
ORDER BY event_id DESC;

-- name: set_quota
INSERT INTO APIKeyServiceQuotas (api_key_id, service_id, initial_quota, remaining_quota, renewal)
VALUES (:api_key_id, :service_id, :quota, :quota, :renewal)
ON CONFLICT (api_key_id, service_id) DO UPDATE SET
    initial_quota = excluded.initial_quota,
    remaining_quota = excluded.remaining_quota,
    renewal = excluded.renewal,
    -- (a period is known by when it began, so no two begin at once)
    renewed_at = max(CURRENT_TIMESTAMP, datetime(APIKeyServiceQuotas.renewed_at, '+1 second')),
    updated_at = CURRENT_TIMESTAMP;

-- name: top_up
UPDATE APIKeyServiceQuotas SET
    initial_quota = initial_quota + :units,
    remaining_quota = remaining_quota + :units,
    updated_at = CURRENT_TIMESTAMP
WHERE api_key_id = :api_key_id
  AND service_id = (SELECT service_id FROM Services WHERE name = :service);

-- name: remove_quota
DELETE FROM APIKeyServiceQuotas
WHERE api_key_id = :api_key_id
  AND service_id = (SELECT service_id FROM Services WHERE name = :service);

-- name: move_quotas
-- The rows stay the same, so that what processes have taken of them, and not written yet, stays taken.
UPDATE APIKeyServiceQuotas SET api_key_id = :new, updated_at = CURRENT_TIMESTAMP
WHERE api_key_id = :old;

-- name: move_successors
UPDATE QuotaSuccessors SET successor_id = :new WHERE successor_id = :old;

-- name: add_successor
-- (A key that was rotated before, and has no quota since, keeps the successor that has them.)
INSERT INTO QuotaSuccessors (api_key_id, successor_id)
SELECT :old, :new WHERE EXISTS (SELECT 1 FROM APIKeyServiceQuotas WHERE api_key_id = :new)
ON CONFLICT (api_key_id) DO UPDATE SET successor_id = excluded.successor_id;

-- name: plan_quotas
SELECT p.name AS plan, s.name AS service, q.initial_quota, q.renewal, q.updated_at
FROM PlanServiceQuotas AS q
JOIN Plans AS p ON p.plan_id = q.plan_id
JOIN Services AS s ON s.service_id = q.service_id
WHERE :plan IS NULL OR p.name = :plan
ORDER BY p.name, s.name;

-- name: set_plan_quota
INSERT INTO PlanServiceQuotas (plan_id, service_id, initial_quota, renewal)
VALUES (:plan_id, :service_id, :quota, :renewal)
ON CONFLICT (plan_id, service_id) DO UPDATE SET
    initial_quota = excluded.initial_quota,
    renewal = excluded.renewal,
    updated_at = CURRENT_TIMESTAMP;

-- name: remove_plan_quota
DELETE FROM PlanServiceQuotas
WHERE plan_id = (SELECT plan_id FROM Plans WHERE name = :plan)
  AND service_id = (SELECT service_id FROM Services WHERE name = :service);

-- name: give_plan_quotas
INSERT INTO APIKeyServiceQuotas (api_key_id, service_id, initial_quota, remaining_quota, renewal)
SELECT k.api_key_id, d.service_id, d.initial_quota, d.initial_quota, d.renewal
FROM APIKeys AS k
JOIN Accounts AS a ON a.account_id = k.account_id
JOIN PlanServiceQuotas AS d ON d.plan_id = a.plan_id
WHERE k.api_key_id >= ?
ON CONFLICT (api_key_id, service_id) DO NOTHING;

-- name: sync_targets
SELECT target_id, url, acknowledged_change, acknowledged_usage, usage_only, synced_at,
       pending_token IS NOT NULL AS is_pending
FROM SyncTargets
WHERE url IS NOT NULL
ORDER BY sync_target_id;

-- name: usage_head
SELECT coalesce(max(usage_id), 0) FROM UsageLog;

-- name: usage_total
SELECT (SELECT CAST(total(amount) AS INTEGER) FROM UsageLog)
       + (SELECT CAST(total(amount) AS INTEGER) FROM UsageHours);

-- name: received_total
SELECT CAST(total(amount) AS INTEGER), count(*) FROM ReceivedUsage;

-- name: schema
SELECT type, name, sql FROM sqlite_master
WHERE type IN ('table', 'trigger', 'index', 'view') AND sql IS NOT NULL;

-- name: quick_check
PRAGMA quick_check(1);

-- name: set_incarnation
UPDATE StoreInfo SET incarnation = ?;
