-- What `keystore export` reads. {columns}, {table} and {rows} are filled from keystore.export.

-- name: rows
-- By id; ReceivedUsage has three columns in its key. The others do not sort for it: their id is unique.
SELECT {columns} FROM {table} ORDER BY 1, 2, 3;

-- name: count
SELECT count(*) FROM ({rows});
