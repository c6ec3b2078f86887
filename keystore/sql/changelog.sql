-- Reading what changed. {table}, {id} and {columns} are filled from keystore.tables.

-- name: head
-- The larger of the two. sqlite_sequence keeps counting when old rows are compacted away; but a
-- statement that stops half way under OR FAIL keeps its rows and does not write sqlite_sequence.
SELECT max(coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'ChangeLog'), 0),
           coalesce((SELECT max(change_id) FROM ChangeLog), 0));

-- name: since
SELECT change_id, table_name, record_id, operation, occurred_at
FROM ChangeLog
WHERE change_id > :after
ORDER BY change_id
LIMIT :limit;

-- name: create_pending
CREATE TEMP TABLE IF NOT EXISTS Pending (
    table_name TEXT NOT NULL,
    record_id INTEGER NOT NULL,
    PRIMARY KEY (table_name, record_id)
) WITHOUT ROWID;

-- name: clear_pending
DELETE FROM temp.Pending;

-- name: fill_pending
INSERT OR IGNORE INTO temp.Pending (table_name, record_id)
SELECT table_name, record_id FROM ChangeLog
WHERE change_id > :after AND change_id <= :up_to AND typeof(record_id) = 'integer';

-- name: count_pending
SELECT count(*) FROM temp.Pending;

-- name: pending_records
SELECT p.record_id, t.{id} IS NULL, {columns}
FROM temp.Pending AS p
LEFT JOIN {table} AS t ON t.{id} = p.record_id
WHERE p.table_name = '{table}' AND p.record_id > :after
ORDER BY p.record_id
LIMIT :limit;

-- name: all_records
SELECT {columns} FROM {table} AS t WHERE t.{id} > :after ORDER BY t.{id} LIMIT :limit;

-- name: records_of
SELECT {columns} FROM {table} AS t WHERE t.{id} BETWEEN :first AND :last ORDER BY t.{id};

-- name: changed_records
SELECT DISTINCT table_name, record_id FROM ChangeLog WHERE change_id > ?;

-- name: log_record
INSERT INTO ChangeLog (table_name, record_id, operation) VALUES (?, ?, 'UPDATE');

-- name: horizon
SELECT log_horizon FROM StoreInfo;

-- name: set_horizon
UPDATE StoreInfo SET log_horizon = ?;

-- name: add_sequence
INSERT INTO sqlite_sequence (name, seq)
SELECT :name, :value
WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = :name);

-- name: raise_sequence
UPDATE sqlite_sequence SET seq = :value WHERE name = :name AND seq < :value;

-- name: skip_ids
-- (that these ids are missing is no gap)
UPDATE StoreInfo SET compacted_to = max(compacted_to, :change);

-- name: begin_compaction
UPDATE StoreInfo SET replaying = 1;

-- name: remove_acknowledged
DELETE FROM ChangeLog WHERE change_id <= ?;

-- name: remove_repeated
DELETE FROM ChangeLog
WHERE change_id NOT IN (SELECT max(change_id) FROM ChangeLog GROUP BY table_name, record_id);

-- name: end_compaction
UPDATE StoreInfo SET
    replaying = 0,
    log_horizon = max(log_horizon, :horizon),
    compacted_to = max(compacted_to, :head);

-- name: count
SELECT count(*) FROM ChangeLog;

-- name: count_records
SELECT count(*) FROM {table};
