-- What was used, by whom: logged, reported, and summed by the hour. {table}, {columns}, {rows}, {where}
-- and {groups} of a report are filled from the columns that it is about.

-- name: key_subject
-- (a key that was deleted is found by its timeline)
SELECT api_key_id, account_id FROM APIKeys WHERE api_key = :name
UNION ALL
SELECT * FROM (SELECT api_key_id, NULL FROM APIKeyStatusEvents WHERE api_key = :name LIMIT 1)
LIMIT 1;

-- name: client_subject
SELECT oauth_client_id, account_id FROM OAuthClients WHERE client_id = :name;

-- name: account_of_key
SELECT account_id FROM APIKeys WHERE api_key_id = ?;

-- name: account_of_client
SELECT account_id FROM OAuthClients WHERE oauth_client_id = ?;

-- name: usage_of_request
-- (by the request's index: without statistics, SQLite would read all rows of the principal)
SELECT usage_id, principal_type, principal_id, account_id, service_id, amount, request_id, occurred_at
FROM UsageLog
WHERE request_id = :request_id AND +principal_type = :principal_type AND +principal_id = :principal_id
ORDER BY usage_id
LIMIT 1;

-- name: log
-- (of a quota's period, though that may begin a moment from now)
INSERT INTO UsageLog (principal_type, principal_id, account_id, service_id, amount, request_id,
                      occurred_at)
VALUES (:principal_type, :principal_id, :account_id, :service_id, :amount, :request_id,
        max(CURRENT_TIMESTAMP, coalesce((SELECT renewed_at FROM APIKeyServiceQuotas
                                         WHERE :principal_type = 'api_key' AND service_id = :service_id
                                           AND api_key_id = :principal_id), '')))
RETURNING usage_id, principal_type, principal_id, account_id, service_id, amount, request_id,
          occurred_at;

-- name: quota_of
SELECT quota_id FROM APIKeyServiceQuotas WHERE api_key_id = ? AND service_id = ?;

-- name: totals
SELECT {columns}, {sums}, {rows} FROM {table} WHERE {where} {groups};

-- name: sum
0, sum(amount);

-- name: sum_in_halves
-- (takes half as long again)
sum(amount >> 32), sum(amount & 4294967295);

-- name: by_hour
substr({time}, 1, 13) || ':00:00';

-- name: by_day
substr({time}, 1, 10);

-- name: within
{time} >= :since AND {time} < :until;

-- name: api_key_name
SELECT api_key FROM APIKeys WHERE api_key_id = ?;

-- name: deleted_keys
SELECT api_key_id, api_key FROM APIKeyStatusEvents WHERE status = 'deleted';

-- name: oauth_client_name
SELECT client_id FROM OAuthClients WHERE oauth_client_id = ?;

-- name: account_name
SELECT email FROM Accounts WHERE account_id = ?;

-- name: service_name
SELECT name FROM Services WHERE service_id = ?;

-- name: holders
-- Who still needs usage of this store row by row, and up to which row it does no more: each target that
-- usage is handed up to (a repository of signed files takes none), the usage files, the quotas.
SELECT url, acknowledged_usage
FROM SyncTargets
WHERE url IS NOT NULL AND url NOT GLOB 'file:*' AND url NOT GLOB 's3:*' AND url NOT GLOB 'http*:*'
UNION ALL
SELECT 'the next usage file',
       coalesce(min(iif(is_pending, first_usage_id - 1, NULL)), max(last_usage_id))
FROM UsageFiles
WHERE store_id = :store_id
GROUP BY store_id
UNION ALL
SELECT 'the origin, which has not settled it',
       coalesce((SELECT usage_id FROM UsageSettlements WHERE replica_id = :store_id), 0)
ORDER BY 2;

-- name: last_usage
SELECT coalesce(max(usage_id), 0) FROM UsageLog;

-- name: begin_summing
UPDATE StoreInfo SET replaying = 1;

-- name: end_summing
UPDATE StoreInfo SET replaying = 0;

-- name: sum_hours
INSERT INTO UsageHours (hour, principal_type, principal_id, account_id, service_id, amount, rows)
SELECT substr(occurred_at, 1, 13) || ':00:00', principal_type, principal_id, account_id, service_id,
       sum(amount), count(*)
FROM UsageLog
WHERE usage_id IN (SELECT usage_id FROM UsageLog
                   WHERE occurred_at < :before AND +usage_id < :below
                   ORDER BY occurred_at, amount, usage_id
                   LIMIT :limit)
GROUP BY 1, 2, 3, 4, 5
ON CONFLICT (hour, principal_type, principal_id, coalesce(account_id, 0), coalesce(service_id, 0))
DO UPDATE SET amount = amount + excluded.amount, rows = rows + excluded.rows;

-- name: remove_summed
DELETE FROM UsageLog
WHERE usage_id IN (SELECT usage_id FROM UsageLog
                   WHERE occurred_at < :before AND +usage_id < :below
                   ORDER BY occurred_at, amount, usage_id
                   LIMIT :limit);

-- name: held
SELECT count(*) FROM UsageLog WHERE occurred_at < :before AND +usage_id < :last;
