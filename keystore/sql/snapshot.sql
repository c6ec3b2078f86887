-- The snapshot file of a repository: the key tables and nothing else, one row per record.

-- name: create
CREATE TABLE {table} ({id} INTEGER PRIMARY KEY, {other_columns});

-- name: put
INSERT OR REPLACE INTO {table} ({columns}) VALUES ({marks});

-- name: delete
DELETE FROM {table} WHERE {id} = ?;

-- name: count
SELECT count(*) FROM {table};

-- name: highest_id
SELECT max({id}) FROM {table};

-- name: rows
SELECT {columns} FROM {table} ORDER BY {id};
