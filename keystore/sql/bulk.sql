-- Many keys in one transaction.

-- name: insert_key
INSERT INTO APIKeys (api_key, account_id, api_key_hash, is_active, status, label, expires_at,
                     allowed_networks, metadata)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: statuses
-- Whether a key passes with a status. Written along with it, so that no trigger has to settle it.
SELECT name, allows_access AND is_active FROM APIKeyStatuses;

-- name: newest_key_id
SELECT coalesce(max(api_key_id), 0) FROM APIKeys;

-- name: keys_between
-- How many keys were added after one, up to another.
SELECT count(*) FROM APIKeys WHERE api_key_id > ? AND api_key_id <= ?;

-- name: taken_by
-- Who has this UUID or this hash, and whether it is the hash.
SELECT api_key_id, api_key_hash = :api_key_hash
FROM APIKeys
WHERE api_key = :api_key OR api_key_hash = :api_key_hash
ORDER BY api_key_id
LIMIT 1;
