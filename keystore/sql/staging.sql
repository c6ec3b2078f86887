-- Records on their way, in a scratch database; see keystore.sync.staging.
-- {table}, {id} and {columns} are filled from keystore.tables.

-- name: create
CREATE TABLE incoming.{table} ({id} INTEGER PRIMARY KEY, {other_columns});

-- name: create_deleted
CREATE TABLE incoming.Deleted (
    table_name TEXT,
    record_id INTEGER,
    PRIMARY KEY (table_name, record_id)
) WITHOUT ROWID;

-- name: insert
INSERT INTO incoming.{table} ({columns}) VALUES ({marks});

-- name: insert_deleted
INSERT INTO incoming.Deleted (table_name, record_id) VALUES ('{table}', ?);

-- name: forget
DELETE FROM incoming.{table} WHERE {id} = ?;

-- name: forget_deleted
DELETE FROM incoming.Deleted WHERE table_name = '{table}' AND record_id = ?;

-- name: note_absent
INSERT OR IGNORE INTO incoming.Deleted (table_name, record_id)
SELECT '{table}', {id} FROM main.{table} WHERE {id} NOT IN (SELECT {id} FROM incoming.{table});

-- name: skip_unchanged
-- (IS compares by the collation of its left side, which is BINARY for e-mail addresses, too)
DELETE FROM incoming.{table} AS i
WHERE EXISTS (
    SELECT 1 FROM main.{table} AS t WHERE t.{id} = i.{id} AND ({incoming}) IS ({held})
);

-- name: apply_deleted
DELETE FROM main.{table}
WHERE {id} IN (
    SELECT record_id FROM incoming.Deleted
    WHERE table_name = '{table}' AND record_id > :after AND record_id <= :last
);

-- name: deleted_step
-- The last of the next so many ids.
SELECT max(record_id) FROM (
    SELECT record_id FROM incoming.Deleted
    WHERE table_name = '{table}' AND record_id > :after
    ORDER BY record_id
    LIMIT :size
);

-- name: delete_replaced
DELETE FROM main.{table}
WHERE {id} IN (SELECT {id} FROM incoming.{table} WHERE {id} > :after AND {id} <= :last);

-- name: insert_replaced
INSERT INTO main.{table} ({columns})
SELECT {columns} FROM incoming.{table} WHERE {id} > :after AND {id} <= :last;

-- name: step
SELECT max({id}) FROM (
    SELECT {id} FROM incoming.{table} WHERE {id} > :after ORDER BY {id} LIMIT :size
);

-- name: rows
SELECT {columns} FROM incoming.{table} WHERE {id} > :after ORDER BY {id} LIMIT :limit;

-- name: deleted
SELECT record_id FROM incoming.Deleted
WHERE table_name = '{table}' AND record_id > :after
ORDER BY record_id
LIMIT :limit;
