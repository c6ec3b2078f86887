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
