-- The store's side of a sync: bookkeeping per target, and the replay on a replica.
-- {table} and {columns} are filled from keystore.tables.

-- name: target
SELECT push_token, pending_token, acknowledged_usage, acknowledged_ledger, acknowledged_revocation,
       last_revocation
FROM SyncTargets
WHERE target_id = ?;

-- name: known_target
SELECT 1 FROM SyncTargets WHERE target_id = ? AND url IS NOT NULL AND usage_only <= ?;

-- name: known_url
SELECT 1 FROM SyncTargets WHERE target_id = ? AND url = ?;

-- name: targets
SELECT url, usage_only FROM SyncTargets WHERE url IS NOT NULL ORDER BY sync_target_id;

-- name: holds
SELECT url, acknowledged_change, synced_at IS NOT NULL AND synced_at > datetime('now', :seconds)
FROM SyncTargets
WHERE url IS NOT NULL AND NOT usage_only
ORDER BY url;

-- name: target_at
SELECT target_id FROM SyncTargets WHERE url = ?;

-- name: source_state
SELECT source_state FROM SyncTargets WHERE url = ? AND source_state IS NOT NULL;

-- name: clear_url
-- Another target answers at this URL now; what was noted of the old one stays, should it return.
UPDATE SyncTargets SET url = NULL WHERE url = :url AND target_id <> :target_id;

-- name: forget_url
-- (what it was asked for is forgotten, too: it may come back for usage alone)
UPDATE SyncTargets SET url = NULL, usage_only = 1 WHERE url = ?;

-- name: add_target
INSERT INTO SyncTargets (target_id, url, usage_only) VALUES (:target_id, :url, :usage_only)
ON CONFLICT (target_id) DO UPDATE SET
    url = coalesce(url, excluded.url),
    usage_only = min(usage_only, excluded.usage_only);

-- name: set_url
UPDATE SyncTargets SET url = :url WHERE target_id = :target_id;

-- name: set_pending
UPDATE SyncTargets SET pending_token = :pending_token WHERE target_id = :target_id;

-- name: acknowledge_push
-- The condition makes a late acknowledgement harmless: if another process has seen this push at
-- the target meanwhile and gone on, there is nothing to do.
UPDATE SyncTargets SET
    acknowledged_change = :acknowledged_change,
    push_token = pending_token,
    pending_token = NULL,
    synced_at = CURRENT_TIMESTAMP
WHERE target_id = :target_id AND pending_token = :token;

-- name: acknowledge_usage
UPDATE SyncTargets SET
    acknowledged_usage = max(acknowledged_usage, :acknowledged_usage),
    synced_at = CURRENT_TIMESTAMP
WHERE target_id = :target_id;

-- name: acknowledge_ledger
UPDATE SyncTargets SET
    acknowledged_ledger = max(acknowledged_ledger, :acknowledged_ledger),
    synced_at = CURRENT_TIMESTAMP
WHERE target_id = :target_id;

-- name: acknowledge_pull
UPDATE SyncTargets SET
    source_state = coalesce(:source_state, source_state),
    synced_at = CURRENT_TIMESTAMP
WHERE target_id = :target_id;

-- name: note_overtaken
-- (the rows are another target's now, which may carry another part of them)
UPDATE SyncTargets SET source_state = json_set(source_state, '$.overtaken', '')
WHERE target_id <> :target_id AND json_valid(source_state);

-- name: acknowledge_same
-- (of a target that is new here, its first word is kept all the same: the root that it is trusted by)
UPDATE SyncTargets SET
    source_state = coalesce(source_state, :source_state),
    synced_at = CURRENT_TIMESTAMP
WHERE target_id = :target_id;

-- name: add_revocation
INSERT INTO Revocations (api_key, reason, revoked_at) VALUES (:api_key, :reason, :revoked_at)
ON CONFLICT (api_key) DO NOTHING;

-- name: add_status_revoked
-- (an operator may have removed it; without it, who has only the origin's rows would hear of nothing)
INSERT INTO APIKeyStatuses (name, description) SELECT 'revoked', 'stopped for good'
WHERE NOT EXISTS (SELECT 1 FROM APIKeyStatuses WHERE name = 'revoked');

-- name: revoke_key
UPDATE APIKeys SET status = 'revoked', status_reason = :reason, updated_at = CURRENT_TIMESTAMP
WHERE api_key = :api_key AND status <> 'revoked';

-- name: acknowledge_revocations
UPDATE SyncTargets SET
    acknowledged_revocation = :revocation_id,
    last_revocation = :api_key
WHERE target_id = :target_id;

-- name: take_token
UPDATE SyncTargets SET pending_token = coalesce(pending_token, :token)
WHERE target_id = :target_id
RETURNING push_token, pending_token;

-- name: acknowledge_check_in
UPDATE SyncTargets SET
    push_token = :token,
    pending_token = NULL,
    synced_at = CURRENT_TIMESTAMP
WHERE target_id = :target_id AND pending_token = :token;

-- name: usage_nonce
SELECT nonce FROM UsageLog WHERE usage_id = ?;

-- name: usage_after
SELECT usage_id, principal_type, principal_id, account_id, service_id, amount, request_id,
       occurred_at, nonce
FROM UsageLog
WHERE usage_id > :after
ORDER BY usage_id
LIMIT :limit;

-- name: ledger_nonce
SELECT nonce FROM CreditLedger WHERE ledger_id = ?;

-- name: ledger_after
SELECT ledger_id, account_id, kind, amount_nano, balance_nano, request_id, note, model,
       model_pricing_id, input_tokens, output_tokens, usage_id, occurred_at, nonce
FROM CreditLedger
WHERE ledger_id > :after
ORDER BY ledger_id
LIMIT :limit;

-- name: begin_replay
UPDATE StoreInfo SET replaying = 1;

-- name: end_replay
UPDATE StoreInfo SET
    replaying = 0,
    token_prefix = :token_prefix,
    as_of_change = :as_of_change,
    as_of_at = :as_of_at,
    origin_incarnation = :origin_incarnation,
    valid_until = :valid_until,
    max_offline_seconds = :max_offline_seconds,
    -- What is newer than what was held comes from someone who knows the time: a clock that was once
    -- ahead is right again. What was held already could be given again with the clock set back.
    clock_mark = CASE
        WHEN as_of_at IS NULL OR (:as_of_change, :as_of_at) > (as_of_change, as_of_at)
            THEN max(:now, :as_of_at)
        ELSE max(coalesce(clock_mark, :now), :now)
    END;

-- name: insert_record
INSERT INTO {table} ({columns}) VALUES ({marks});

-- name: count_records
SELECT count(*) FROM {table};
