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

-- name: settle
-- (fires the trigger that logs the change; the one that settles has nothing left to do)
UPDATE APIKeys SET is_active = coalesce((SELECT s.allows_access AND s.is_active
                                         FROM APIKeyStatuses AS s WHERE s.name = status), 0)
WHERE is_active <> coalesce((SELECT s.allows_access AND s.is_active
                             FROM APIKeyStatuses AS s WHERE s.name = status), 0);

-- name: end_replaying
UPDATE StoreInfo SET replaying = 0;

-- name: log_all
INSERT INTO ChangeLog (table_name, record_id, operation) SELECT '{table}', {id}, 'UPDATE' FROM {table};

-- name: gaps
-- Ids are given without a gap, so a missing one is a change that somebody removed.
SELECT coalesce(max(change_id) - min(change_id) + 1 - count(*), 0) + coalesce(min(change_id) - 1, 0)
FROM ChangeLog;
