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
-- (a replica gives no ids in the tables that travel; in the others it starts anew)
DELETE FROM sqlite_sequence WHERE name NOT IN (
    'Plans', 'Accounts', 'Services', 'APIKeyStatuses', 'APIKeys', 'APIKeyServiceQuotas',
    'APIKeyStatusEvents', 'OAuthClients'
);
