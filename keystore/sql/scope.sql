-- The rows of one account, or of one service; see keystore.scope. Of what has been settled a replica needs
-- its own row, and any replica may be the one. It issues no keys and charges nothing: it needs neither the
-- quotas of plans nor providers, models and prices.

-- name: create_ids
CREATE TABLE scoped.Ids (
    table_name TEXT NOT NULL,
    record_id INTEGER NOT NULL,
    PRIMARY KEY (table_name, record_id)
) WITHOUT ROWID;

-- name: of_account
INSERT INTO scoped.Ids (table_name, record_id)
WITH
    Chosen AS (SELECT api_key_id, status FROM main.APIKeys WHERE account_id = :record_id),
    Quotas AS (
        SELECT quota_id, service_id FROM main.APIKeyServiceQuotas
        WHERE api_key_id IN (SELECT api_key_id FROM Chosen)
    )
SELECT 'Accounts', account_id FROM main.Accounts WHERE account_id = :record_id
UNION
SELECT 'Plans', plan_id FROM main.Accounts WHERE account_id = :record_id
UNION
SELECT 'APIKeys', api_key_id FROM Chosen
UNION
SELECT 'APIKeyServiceQuotas', quota_id FROM Quotas
UNION
SELECT 'Services', service_id FROM Quotas
UNION
SELECT 'APIKeyStatuses', status_id FROM main.APIKeyStatuses
WHERE name IN (SELECT status FROM Chosen)
UNION
SELECT 'APIKeyStatusEvents', event_id FROM main.APIKeyStatusEvents
WHERE api_key_id IN (SELECT api_key_id FROM Chosen)
UNION
SELECT 'OAuthClients', oauth_client_id FROM main.OAuthClients WHERE account_id = :record_id
UNION
SELECT 'UsageSettlements', settlement_id FROM main.UsageSettlements;

-- name: of_service
INSERT INTO scoped.Ids (table_name, record_id)
WITH
    Quotas AS (
        SELECT quota_id, api_key_id FROM main.APIKeyServiceQuotas WHERE service_id = :record_id
    ),
    Chosen AS (
        SELECT api_key_id, account_id, status FROM main.APIKeys
        WHERE api_key_id IN (SELECT api_key_id FROM Quotas)
    )
SELECT 'Services', service_id FROM main.Services WHERE service_id = :record_id
UNION
SELECT 'APIKeyServiceQuotas', quota_id FROM Quotas
UNION
SELECT 'APIKeys', api_key_id FROM Chosen
UNION
SELECT 'Accounts', account_id FROM Chosen
UNION
SELECT 'Plans', plan_id FROM main.Accounts
WHERE account_id IN (SELECT account_id FROM Chosen)
UNION
SELECT 'APIKeyStatuses', status_id FROM main.APIKeyStatuses
WHERE name IN (SELECT status FROM Chosen)
UNION
SELECT 'APIKeyStatusEvents', event_id FROM main.APIKeyStatusEvents
WHERE api_key_id IN (SELECT api_key_id FROM Chosen)
UNION
SELECT 'UsageSettlements', settlement_id FROM main.UsageSettlements;

-- name: create
CREATE TABLE scoped.{table} ({id} INTEGER PRIMARY KEY, {other_columns});

-- name: copy
-- (an id may name a row that is gone: nothing checks the foreign keys of other clients)
INSERT INTO scoped.{table} ({columns})
SELECT {columns} FROM main.{table}
WHERE {id} IN (SELECT record_id FROM scoped.Ids WHERE table_name = '{table}');

-- name: count
SELECT count(*) FROM scoped.{table};

-- name: rows
SELECT {columns} FROM scoped.{table} WHERE {id} > :after ORDER BY {id} LIMIT :limit;
