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
-- (The usage by the key's index: without statistics, SQLite would read all usage of the service.)
INSERT INTO QuotaUse (quota_id, period, settled_usage, spent)
SELECT q.quota_id, :period, :settled,
       (SELECT CAST(min(total(l.amount), 4611686018427387904.0) AS INTEGER) FROM UsageLog AS l
        WHERE +l.usage_id > :settled AND l.principal_type = 'api_key'
          AND l.principal_id = q.api_key_id AND +l.service_id = q.service_id
          AND l.occurred_at >= :period)
FROM APIKeyServiceQuotas AS q
WHERE q.quota_id = :quota_id
ON CONFLICT (quota_id) DO UPDATE SET
    leased = iif(period = excluded.period, leased, 0),
    period = excluded.period,
    settled_usage = excluded.settled_usage,
    spent = excluded.spent;

-- name: used
SELECT spent + leased FROM QuotaUse WHERE quota_id = ?;

-- name: of_key
-- What is left of all quotas of a key here, without writing QuotaUse.
WITH Periods AS (
    SELECT q.*, max(q.renewed_at, CASE q.renewal WHEN 'daily' THEN :day
                                                 WHEN 'monthly' THEN :month ELSE '' END) AS period,
           coalesce((SELECT usage_id FROM UsageSettlements WHERE replica_id = :store_id), 0) AS settled
    FROM APIKeyServiceQuotas AS q
    WHERE q.api_key_id = :api_key_id
)
SELECT s.name AS service, p.initial_quota, p.remaining_quota,
       max(0, iif(p.period > p.renewed_at, p.initial_quota, p.remaining_quota)
              - iif(u.period = p.period, u.leased, 0)
              - CASE WHEN u.period = p.period AND u.settled_usage = p.settled THEN u.spent
                     ELSE (SELECT CAST(min(total(l.amount), 4611686018427387904.0) AS INTEGER)
                           FROM UsageLog AS l
                           WHERE +l.usage_id > p.settled AND l.principal_type = 'api_key'
                             AND l.principal_id = p.api_key_id AND +l.service_id = p.service_id
                             AND l.occurred_at >= p.period) END) AS left,
       p.renewal, p.updated_at
FROM Periods AS p
JOIN Services AS s ON s.service_id = p.service_id
LEFT JOIN QuotaUse AS u ON u.quota_id = p.quota_id
ORDER BY s.name;

-- name: lease
UPDATE QuotaUse SET leased = leased + ? WHERE quota_id = ?;

-- name: spend
-- In the period that it was leased in, while that lasts. (Which may begin a moment from now: no two begin
-- at once, and a clock may have been ahead.)
UPDATE QuotaUse SET spent = spent + :units, leased = max(0, leased - :units)
WHERE quota_id = :quota_id AND period = :period
  AND period >= (SELECT renewed_at FROM APIKeyServiceQuotas WHERE quota_id = :quota_id)
RETURNING iif(period > CURRENT_TIMESTAMP, period, NULL);

-- name: use
UPDATE QuotaUse SET spent = min(spent + ?, 4611686018427387904) WHERE quota_id = ?;

-- name: before_period
SELECT min(CURRENT_TIMESTAMP, datetime(max(u.period, q.renewed_at), '-1 second'))
FROM QuotaUse AS u
JOIN APIKeyServiceQuotas AS q ON q.quota_id = u.quota_id
WHERE u.quota_id = ?;

-- name: give_back
UPDATE QuotaUse SET leased = max(0, leased - :units)
WHERE quota_id = :quota_id AND period = :period;

-- name: usage_head
SELECT coalesce(max(usage_id), 0) FROM UsageLog;

-- name: settled
SELECT coalesce((SELECT usage_id FROM UsageSettlements WHERE replica_id = ?), 0);

-- name: all_settled
SELECT replica_id, usage_id FROM UsageSettlements;

-- name: own_use
-- Rows of the period that a quota is in, and when that began. (With a +: without statistics, SQLite would
-- read the usage of all keys, and not what is new.)
SELECT q.api_key_id, q.service_id,
       max(q.renewed_at, CASE q.renewal WHEN 'daily' THEN :day
                                        WHEN 'monthly' THEN :month ELSE '' END),
       CAST(min(total(l.amount), 4611686018427387904.0) AS INTEGER)
FROM UsageLog AS l
LEFT JOIN APIKeyServiceQuotas AS o ON o.api_key_id = l.principal_id AND o.service_id = l.service_id
LEFT JOIN QuotaSuccessors AS s ON s.api_key_id = l.principal_id
JOIN APIKeyServiceQuotas AS q
    ON q.api_key_id = coalesce(o.api_key_id, s.successor_id) AND q.service_id = l.service_id
WHERE l.usage_id > :settled AND l.usage_id <= :head AND +l.principal_type = 'api_key' AND l.amount > 0
  AND l.occurred_at >= max(q.renewed_at, CASE q.renewal WHEN 'daily' THEN :day
                                                        WHEN 'monthly' THEN :month ELSE '' END)
GROUP BY q.quota_id;

-- name: is_renewal_due
SELECT EXISTS (SELECT 1 FROM APIKeyServiceQuotas
               WHERE renewal = :renewal AND renewed_at < :period AND remaining_quota < initial_quota);

-- name: is_lift_due
SELECT EXISTS (SELECT 1 FROM APIKeys AS k
               LEFT JOIN APIKeyServiceQuotas AS q ON q.api_key_id = k.api_key_id
               WHERE k.status = 'exhausted' AND k.status <> 'assigned'
                 AND (q.remaining_quota > 0
                      OR (q.quota_id IS NULL AND k.status_reason = 'all quotas are used up')));

-- name: renew
-- What nobody has used needs no renewal: it would be a change of every row, every day.
UPDATE APIKeyServiceQuotas SET
    remaining_quota = initial_quota,
    renewed_at = :period,
    updated_at = CURRENT_TIMESTAMP
WHERE renewal = :renewal AND renewed_at < :period AND remaining_quota < initial_quota;

-- name: used_quota
-- The key's own, which it may have been given after it was rotated; else its successor's.
SELECT quota_id FROM APIKeyServiceQuotas
WHERE service_id = :service_id
  AND api_key_id IN (:api_key_id, (SELECT successor_id FROM QuotaSuccessors
                                   WHERE api_key_id = :api_key_id))
ORDER BY api_key_id <> :api_key_id
LIMIT 1;

-- name: begin_period
-- A quota that nobody had used: from its first use in a period on, it is of that period.
UPDATE APIKeyServiceQuotas SET
    renewed_at = CASE renewal WHEN 'daily' THEN :day ELSE :month END,
    updated_at = CURRENT_TIMESTAMP
WHERE quota_id = :quota_id
  AND renewed_at < CASE renewal WHEN 'daily' THEN :day WHEN 'monthly' THEN :month ELSE '' END;

-- name: deduct
-- (of an hour that a renewal lies in, all counts: rather too much than too little)
UPDATE APIKeyServiceQuotas SET
    remaining_quota = max(0, remaining_quota - :amount),
    updated_at = CURRENT_TIMESTAMP
WHERE quota_id = :quota_id AND :amount > 0
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
-- A key whose last quota was removed is one without quotas, unless an operator or an import calls it
-- exhausted.
UPDATE APIKeys SET
    status = 'assigned',
    status_reason = iif(EXISTS (SELECT 1 FROM APIKeyServiceQuotas AS q
                                WHERE q.api_key_id = APIKeys.api_key_id),
                        'a quota is there again', 'no quota is used up any more'),
    updated_at = CURRENT_TIMESTAMP
WHERE status = 'exhausted' AND status <> 'assigned' -- (so that its index serves)
  AND (EXISTS (SELECT 1 FROM APIKeyServiceQuotas AS q
               WHERE q.api_key_id = APIKeys.api_key_id AND q.remaining_quota > 0)
       -- (its last one, or the service, was removed)
       OR (status_reason = 'all quotas are used up'
           AND NOT EXISTS (SELECT 1 FROM APIKeyServiceQuotas AS q
                           WHERE q.api_key_id = APIKeys.api_key_id)));
