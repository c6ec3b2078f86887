-- What `keystore import-legacy` asks. `old` is the store that is moved, attached read-only; `main` is
-- the draft of the new one. Lists of values come as JSON arrays, and the answers name positions in
-- them, so that one statement looks at a whole chunk.

-- name: attach
ATTACH ? AS old;

-- name: application_id
PRAGMA old.application_id;

-- name: old_tables
SELECT name FROM old.sqlite_master
WHERE type = 'table' AND name NOT LIKE 'sqlite\_%' ESCAPE '\'
ORDER BY name;

-- name: old_total
SELECT (SELECT count(*) FROM old.Plans) + (SELECT count(*) FROM old.Accounts)
       + (SELECT count(*) FROM old.APIKeys);

-- name: old_plans
SELECT * FROM old.Plans;

-- name: old_accounts
SELECT * FROM old.Accounts;

-- name: old_keys
SELECT * FROM old.APIKeys;

-- name: taken_plans
SELECT j.key, 'plan_id' FROM json_each(?) AS j CROSS JOIN main.Plans AS p ON p.plan_id = j.value
UNION ALL
SELECT j.key, 'name' FROM json_each(?) AS j CROSS JOIN main.Plans AS p ON p.name = j.value;

-- name: taken_accounts
SELECT j.key, 'account_id'
FROM json_each(?) AS j CROSS JOIN main.Accounts AS a ON a.account_id = j.value
UNION ALL
SELECT j.key, 'email' FROM json_each(?) AS j CROSS JOIN main.Accounts AS a ON a.email = j.value;

-- name: taken_keys
SELECT j.key, 'api_key_id'
FROM json_each(?) AS j CROSS JOIN main.APIKeys AS k ON k.api_key = j.value
UNION ALL
SELECT j.key, 'api_key_hash'
FROM json_each(?) AS j CROSS JOIN main.APIKeys AS k ON k.api_key_hash = j.value;

-- name: missing_plans
SELECT j.key FROM json_each(?) AS j
WHERE NOT EXISTS (SELECT 1 FROM main.Plans AS p WHERE p.plan_id = j.value);

-- name: missing_accounts
SELECT j.key FROM json_each(?) AS j
WHERE NOT EXISTS (SELECT 1 FROM main.Accounts AS a WHERE a.account_id = j.value);

-- name: insert_plan
INSERT INTO main.Plans (plan_id, name, created_at, updated_at) VALUES (?, ?, ?, ?);

-- name: insert_account
INSERT INTO main.Accounts (account_id, email, plan_id, is_active, created_at, updated_at)
VALUES (?, ?, ?, ?, ?, ?);

-- name: insert_key
INSERT INTO main.APIKeys
    (api_key, api_key_hash, account_id, is_active, status, created_at, updated_at)
VALUES (?, ?, ?, ?, ?, ?, ?);

-- name: forget_sequence
DELETE FROM main.sqlite_sequence WHERE name = ?;

-- name: set_sequence
INSERT INTO main.sqlite_sequence (name, seq) VALUES (?, ?);

-- name: sequence
SELECT seq FROM main.sqlite_sequence WHERE name = ?;
