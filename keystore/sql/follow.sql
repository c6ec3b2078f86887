-- What keystore.sync.follow asks of the store.

-- name: data_version
-- Changes with every commit of another connection, in this process or any other.
PRAGMA data_version;

-- name: waiting
-- What a target has acknowledged (nothing, if it is not known yet), and what the store holds. By the
-- URL only as long as the target has not said who it is: another process may find it at another one.
WITH Known AS (
    SELECT coalesce(max(acknowledged_change), 0) AS change,
           coalesce(max(acknowledged_usage), 0) AS usage,
           coalesce(max(acknowledged_ledger), 0) AS entry
    FROM SyncTargets
    WHERE target_id = :target_id OR (:target_id IS NULL AND url = :url)
)
SELECT change,
       (SELECT count(*) FROM UsageLog WHERE :has_hub AND usage_id > Known.usage),
       (SELECT count(*) FROM CreditLedger WHERE :has_hub AND ledger_id > Known.entry)
FROM Known;
