-- Usage in signed files: what a replica has written, and what an origin has taken.

-- name: usage_head
SELECT coalesce(max(usage_id), 0) FROM UsageLog;

-- name: next_file
-- The next number of this incarnation, and the last row that any file of this store has; files of
-- an earlier incarnation, before a restore, are among what was restored.
SELECT coalesce(max(CASE WHEN incarnation = :incarnation THEN number END), 0) + 1,
       coalesce(max(last_usage_id), 0)
FROM UsageFiles
WHERE store_id = :store_id;

-- name: usage_rows
SELECT usage_id, principal_type, principal_id, account_id, service_id, amount, request_id,
       occurred_at, nonce
FROM UsageLog
WHERE usage_id BETWEEN :first_usage_id AND :last_usage_id
ORDER BY usage_id
LIMIT :limit;

-- name: note_file
INSERT INTO UsageFiles (store_id, incarnation, number, first_usage_id, last_usage_id, digest,
                        is_pending)
VALUES (:store_id, :incarnation, :number, :first_usage_id, :last_usage_id, :digest, :is_pending);

-- name: pending_files
SELECT store_id, incarnation, number, first_usage_id, last_usage_id, digest
FROM UsageFiles
WHERE store_id = :store_id AND is_pending
ORDER BY usage_file_id;

-- name: numbered_files
SELECT store_id, incarnation, number, first_usage_id, last_usage_id, digest
FROM UsageFiles
WHERE store_id = :store_id AND number BETWEEN :first AND :last
ORDER BY usage_file_id;

-- name: file_written
UPDATE UsageFiles SET is_pending = 0
WHERE store_id = :store_id AND incarnation = :incarnation AND number = :number AND is_pending;

-- name: file_digests
SELECT digest FROM UsageFiles
WHERE store_id = :store_id AND incarnation = :incarnation AND number = :number;

-- name: add_received
INSERT INTO ReceivedUsage (store_id, usage_id, nonce, principal_type, principal_id, account_id,
                           service_id, amount, request_id, occurred_at)
VALUES (:store_id, :usage_id, :nonce, :principal_type, :principal_id, :account_id,
        :service_id, :amount, :request_id, :occurred_at)
ON CONFLICT (store_id, usage_id, nonce) DO NOTHING;

-- name: complete_up_to
-- The last row before the first number that is missing. An incarnation begins where the store was
-- restored: what another copy of it had written after its last file here is lost with that copy.
WITH Files AS (
    SELECT first_usage_id, last_usage_id,
           number - lag(number, 1, 0) OVER (PARTITION BY incarnation ORDER BY number, usage_file_id)
               > 1 AS is_late
    FROM UsageFiles
    WHERE store_id = ?
)
SELECT coalesce(max(last_usage_id), 0) FROM Files
WHERE NOT is_late AND first_usage_id < coalesce((SELECT min(first_usage_id) FROM Files WHERE is_late),
                                                9223372036854775807);

-- name: missing_numbers
-- As ranges: one file with a high number does not make a long list.
SELECT store_id, incarnation, first, last
FROM (
    SELECT store_id, incarnation, number - 1 AS last,
           lag(number, 1, 0) OVER (PARTITION BY store_id, incarnation ORDER BY number) + 1 AS first
    FROM (SELECT DISTINCT store_id, incarnation, number FROM UsageFiles)
)
WHERE first <= last
ORDER BY store_id, incarnation, first;

-- name: add_key
INSERT INTO UsageKeys (store_id, fingerprint, public_key, label)
VALUES (:store_id, :fingerprint, :public_key, :label);

-- name: key
SELECT fingerprint, store_id, label, enrolled_at, revoked_at, public_key
FROM UsageKeys
WHERE fingerprint = ?;

-- name: keys
SELECT fingerprint, store_id, label, enrolled_at, revoked_at, public_key
FROM UsageKeys
ORDER BY usage_key_id;

-- name: revoke_usage_key
UPDATE UsageKeys SET revoked_at = CURRENT_TIMESTAMP WHERE fingerprint = ? AND revoked_at IS NULL;
