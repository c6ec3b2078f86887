-- The snapshot file of a repository. {table}, {id} and {columns} are filled from keystore.tables.

-- name: count
SELECT count(*) FROM {table};

-- name: rows
SELECT {columns} FROM {table} ORDER BY {id};

-- name: any_row
SELECT EXISTS (SELECT 1 FROM {table});

-- name: highest_id
SELECT max({id}) FROM {table};

-- name: forget_sequences
DELETE FROM sqlite_sequence;

-- name: set_sequence
INSERT INTO sqlite_sequence (name, seq)
SELECT '{table}', highest FROM (SELECT max({id}) AS highest FROM {table}) WHERE highest IS NOT NULL;
