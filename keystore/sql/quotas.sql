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
UPDATE QuotaUse SET spent = spent + :units, leased = max(0, leased - :units)
WHERE quota_id = :quota_id AND period = :period;

-- name: use
UPDATE QuotaUse SET spent = spent + ? WHERE quota_id = ?;

-- name: before_period
SELECT datetime(period, '-1 second') FROM QuotaUse WHERE quota_id = ?;

-- name: give_back
UPDATE QuotaUse SET leased = max(0, leased - :units)
WHERE quota_id = :quota_id AND period = :period;

-- name: usage_head
SELECT coalesce(max(usage_id), 0) FROM UsageLog;

-- name: settled
SELECT coalesce((SELECT usage_id FROM UsageSettlements WHERE replica_id = ?), 0);

-- name: own_use
SELECT q.api_key_id, q.service_id, q.renewed_at, sum(l.amount)
FROM UsageLog AS l
JOIN APIKeyServiceQuotas AS q ON q.api_key_id = l.principal_id AND q.service_id = l.service_id
WHERE l.usage_id > ? AND l.usage_id <= ? AND l.principal_type = 'api_key'
  AND l.occurred_at >= q.renewed_at
GROUP BY q.quota_id;

-- name: renew
-- What nobody has used needs no renewal: it would be a change of every row, every day.
UPDATE APIKeyServiceQuotas SET
    remaining_quota = initial_quota,
    renewed_at = :period,
    updated_at = CURRENT_TIMESTAMP
WHERE renewal = :renewal AND renewed_at < :period AND remaining_quota < initial_quota;

-- name: deduct
-- (of an hour that a renewal lies in, all counts: rather too much than too little)
UPDATE APIKeyServiceQuotas SET
    remaining_quota = max(0, remaining_quota - :amount),
    updated_at = CURRENT_TIMESTAMP
WHERE api_key_id = :api_key_id AND service_id = :service_id
  AND :hour >= substr(renewed_at, 1, 13) || ':00:00';

-- name: note_settled
INSERT INTO UsageSettlements (replica_id, usage_id) VALUES (:replica_id, :usage_id)
ON CONFLICT (replica_id) DO UPDATE SET
    usage_id = excluded.usage_id,
    updated_at = CURRENT_TIMESTAMP
WHERE usage_id < excluded.usage_id;

-- name: set_exhausted
-- All quotas of the key are used up, and none is to be renewed by now.
UPDATE APIKeys SET
    status = 'exhausted',
    status_reason = 'all quotas are used up',
    updated_at = CURRENT_TIMESTAMP
WHERE status = 'assigned'
  AND api_key_id IN (SELECT api_key_id FROM APIKeyServiceQuotas WHERE remaining_quota = 0)
  AND NOT EXISTS (SELECT 1 FROM APIKeyServiceQuotas AS q
                  WHERE q.api_key_id = APIKeys.api_key_id AND q.remaining_quota > 0)
  AND EXISTS (SELECT 1 FROM APIKeyStatuses WHERE name = 'exhausted');

-- name: lift_exhausted
UPDATE APIKeys SET
    status = 'assigned',
    status_reason = 'a quota is there again',
    updated_at = CURRENT_TIMESTAMP
WHERE status = 'exhausted'
  AND EXISTS (SELECT 1 FROM APIKeyServiceQuotas AS q
              WHERE q.api_key_id = APIKeys.api_key_id AND q.remaining_quota > 0);
