-- What the validator asks: one look-up per token that is not in its cache, and its usage.

-- name: entry
-- LEFT JOINs: a key whose account or plan some client has removed is found, and denied.
-- A key that was revoked at a hub is revoked, whatever its row says.
SELECT k.api_key_id, k.api_key, k.is_active AND r.api_key IS NULL,
       iif(r.api_key IS NULL, k.status, 'revoked'),
       coalesce(s.allows_access AND s.is_active, 0), k.expires_at, k.allowed_networks, k.label,
       k.metadata, k.account_id, a.email, coalesce(a.is_active, 0), p.name, p.max_staleness_seconds,
       p.stale_action, p.rate_limit, p.rate_window_seconds, p.rate_burst
FROM APIKeys AS k
LEFT JOIN APIKeyStatuses AS s ON s.name = k.status
LEFT JOIN Accounts AS a ON a.account_id = k.account_id
LEFT JOIN Plans AS p ON p.plan_id = a.plan_id
LEFT JOIN Revocations AS r ON r.api_key = k.api_key
-- By way of the row: an index that somebody forged must not find a key by the hash of another token.
WHERE k.api_key_id = (SELECT api_key_id FROM APIKeys WHERE api_key_hash = ?1)
  AND k.api_key_hash = ?1;

-- name: client
-- As "entry", for an OAuth client; it has no status of its own. Its id is negative: no key has such a one.
SELECT -c.oauth_client_id, NULL, c.is_active,
       iif(c.is_active = 1, 'assigned', 'suspended'), 1, NULL, NULL, NULL, NULL, c.account_id, a.email,
       coalesce(a.is_active, 0), p.name, p.max_staleness_seconds, p.stale_action, p.rate_limit,
       p.rate_window_seconds, p.rate_burst, c.client_secret_hash
FROM OAuthClients AS c
LEFT JOIN Accounts AS a ON a.account_id = c.account_id
LEFT JOIN Plans AS p ON p.plan_id = a.plan_id
WHERE c.oauth_client_id = (SELECT oauth_client_id FROM OAuthClients WHERE client_id = ?1)
  AND c.client_id = ?1;

-- name: data_version
-- Changes with every commit of another connection, in this process or any other.
PRAGMA data_version;

-- name: insert_usage
INSERT INTO UsageLog (principal_type, principal_id, account_id, service_id, amount, occurred_at,
                      nonce)
VALUES (iif(?1 > 0, 'api_key', 'oauth_client'), abs(?1), ?2, ?3, ?4, coalesce(?5, CURRENT_TIMESTAMP), ?6);

-- name: last_usage_id
SELECT coalesce(max(usage_id), 0) FROM UsageLog;

-- name: usage_written
SELECT 1 FROM UsageLog WHERE usage_id > ? AND nonce = ? LIMIT 1;

-- name: set_clock_mark
-- (OR IGNORE: a clock in the year 3000 must not keep the usage from being written)
UPDATE OR IGNORE StoreInfo SET clock_mark = :mark
WHERE role = 'replica'
  AND as_of_change IS :as_of_change
  AND as_of_at IS :as_of_at
  AND (clock_mark IS NULL OR clock_mark < :mark);

-- name: journal_mode
PRAGMA journal_mode;

-- name: touch
-- A read, so that the WAL-index is there.
SELECT count(*) FROM sqlite_master;

-- name: tail
-- What was changed since; the first row is the last that was seen before.
SELECT change_id, table_name, record_id, occurred_at
FROM ChangeLog
WHERE change_id >= :last
ORDER BY change_id
LIMIT :limit;

-- name: last_change
SELECT change_id, table_name, record_id, occurred_at
FROM ChangeLog
ORDER BY change_id DESC
LIMIT 1;

-- name: schema_version
PRAGMA schema_version;

-- name: last_revocation
SELECT coalesce(max(revocation_id), 0) FROM Revocations;

-- name: services
-- The active services that a key has a quota for.
SELECT s.name, q.quota_id, q.service_id, q.initial_quota, q.renewal, q.renewed_at
FROM APIKeyServiceQuotas AS q
JOIN Services AS s ON s.service_id = q.service_id
WHERE q.api_key_id = ? AND s.is_active;

-- name: quota_key
SELECT api_key_id FROM APIKeyServiceQuotas WHERE quota_id = ?;

-- name: revoked_since
SELECT k.api_key_id FROM Revocations AS r
JOIN APIKeys AS k ON k.api_key = r.api_key
WHERE r.revocation_id > ?;
