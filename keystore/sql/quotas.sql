-- What is left of quotas, and what was taken of them; see keystore.quotas.

-- name: quota
SELECT q.initial_quota, q.remaining_quota, q.renewal, q.renewed_at, coalesce(s.usage_id, 0),
       u.period, u.settled_usage, coalesce(u.spent + u.leased, 0)
FROM APIKeyServiceQuotas AS q
LEFT JOIN QuotaUse AS u ON u.quota_id = q.quota_id
LEFT JOIN UsageSettlements AS s ON s.replica_id = :store_id
WHERE q.quota_id = :quota_id;

-- name: count_use
-- What was leased in an earlier period is forgotten: spent or not, it was of that period.
INSERT INTO QuotaUse (quota_id, period, settled_usage, spent)
SELECT q.quota_id, :period, :settled,
       coalesce((SELECT sum(l.amount) FROM UsageLog AS l
                 WHERE l.usage_id > :settled AND l.principal_type = 'api_key'
                   AND l.principal_id = q.api_key_id AND l.service_id = q.service_id
                   AND l.occurred_at >= :period), 0)
FROM APIKeyServiceQuotas AS q
WHERE q.quota_id = :quota_id
ON CONFLICT (quota_id) DO UPDATE SET
    leased = iif(period = excluded.period, leased, 0),
    period = excluded.period,
    settled_usage = excluded.settled_usage,
    spent = excluded.spent;

-- name: used
SELECT spent + leased FROM QuotaUse WHERE quota_id = ?;

-- name: lease
UPDATE QuotaUse SET leased = leased + ? WHERE quota_id = ?;

-- name: spend
UPDATE QuotaUse SET
    spent = spent + :units,
    leased = max(0, leased - iif(period = :period, :units, 0))
WHERE quota_id = :quota_id;

-- name: give_back
UPDATE QuotaUse SET leased = max(0, leased - :units)
WHERE quota_id = :quota_id AND period = :period;
