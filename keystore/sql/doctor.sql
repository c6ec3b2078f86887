-- What `keystore doctor` asks. {table}, {id} are filled from keystore.tables.

-- name: integrity
PRAGMA integrity_check(10);

-- name: foreign_keys
PRAGMA foreign_key_check;

-- name: journal_mode
PRAGMA journal_mode;

-- name: sequence
SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = '{table}'), 0),
       coalesce((SELECT max({id}) FROM {table}), 0);

-- name: future_occurrences
SELECT count(*) FROM ChangeLog WHERE occurred_at > datetime('now', '+5 minutes');

-- name: replaying
SELECT replaying FROM StoreInfo;

-- name: role
SELECT role FROM StoreInfo;

-- name: identity
SELECT store_id, incarnation, origin_id, token_prefix FROM StoreInfo;

-- name: contradictions
SELECT k.api_key_id
FROM APIKeys AS k
LEFT JOIN APIKeyStatuses AS s ON s.name = k.status
WHERE k.is_active <> coalesce(s.allows_access AND s.is_active, 0);

-- name: close
-- Only ever takes access away: a key that is not active and has a status that allows is for a person
-- to decide, and denied meanwhile.
UPDATE APIKeys SET is_active = 0
WHERE is_active AND NOT coalesce((SELECT s.allows_access AND s.is_active
                                  FROM APIKeyStatuses AS s WHERE s.name = status), 0);

-- name: end_replaying
UPDATE StoreInfo SET replaying = 0;

-- name: gaps
-- Ids are given without a gap, so a missing one is a change that somebody removed; unless it was
-- compacted.
SELECT max(coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'ChangeLog'), 0),
           coalesce((SELECT max(change_id) FROM ChangeLog), 0))
       - compacted_to
       - (SELECT count(*) FROM ChangeLog AS c WHERE c.change_id > compacted_to)
FROM StoreInfo;

-- name: begin_replaying
UPDATE StoreInfo SET replaying = 1;

-- name: event_texts
SELECT old_status, status, reason FROM APIKeyStatusEvents WHERE event_id = ?;

-- name: set_event_texts
UPDATE APIKeyStatusEvents SET old_status = ?, status = ?, reason = ? WHERE event_id = ?;

-- name: log_event
INSERT INTO ChangeLog (table_name, record_id, operation) VALUES ('APIKeyStatusEvents', ?, 'UPDATE');

-- name: quotas_above_initial
SELECT count(*) FROM APIKeyServiceQuotas WHERE remaining_quota > initial_quota;

-- name: quotas_gone
-- (an update that replaces a quota leaves such a row; it does no harm)
SELECT count(*) FROM QuotaUse WHERE quota_id NOT IN (SELECT quota_id FROM APIKeyServiceQuotas);

-- name: exhausted_with_units
SELECT count(*) FROM APIKeys AS k
WHERE k.status = 'exhausted'
  AND EXISTS (SELECT 1 FROM APIKeyServiceQuotas AS q
              WHERE q.api_key_id = k.api_key_id AND q.remaining_quota > 0);
