-- What the fleet simulator asks the stores of its nodes.

-- name: key_states
-- Whether a key passes as far as its rows say, and until when.
SELECT k.api_key, k.is_active AND s.allows_access AND a.is_active, k.expires_at, k.status
FROM APIKeys AS k
JOIN APIKeyStatuses AS s ON s.name = k.status
JOIN Accounts AS a ON a.account_id = k.account_id;

-- name: usage_since
SELECT usage_id, nonce, amount FROM UsageLog WHERE usage_id > ?;

-- name: ledger_since
SELECT ledger_id, nonce, amount_nano FROM CreditLedger WHERE ledger_id > ?;

-- name: metered
-- Units that validators have written: what is charged has a request id.
SELECT coalesce(sum(amount), 0) FROM UsageLog WHERE request_id IS NULL;

-- name: received
SELECT store_id, usage_id, nonce, amount FROM ReceivedUsage;

-- name: revoked
SELECT api_key FROM Revocations;

-- name: balances
SELECT b.balance_nano, (SELECT coalesce(sum(l.amount_nano), 0) FROM CreditLedger AS l
                        WHERE l.account_id = b.account_id)
FROM CreditBalances AS b;

-- name: quotas
SELECT q.api_key_id, q.service_id, q.initial_quota, q.remaining_quota
FROM APIKeyServiceQuotas AS q;

-- name: received_of_services
SELECT store_id, usage_id, nonce, principal_id, service_id, amount FROM ReceivedUsage
WHERE principal_type = 'api_key' AND service_id IS NOT NULL;

-- name: overspent
SELECT q.api_key_id, q.initial_quota, sum(l.amount)
FROM APIKeyServiceQuotas AS q
JOIN UsageLog AS l ON l.principal_type = 'api_key' AND l.principal_id = q.api_key_id
                      AND l.service_id = q.service_id
WHERE q.renewal = 'never'
GROUP BY q.quota_id
HAVING sum(l.amount) > q.initial_quota;

-- name: successors
SELECT api_key_id, successor_id FROM QuotaSuccessors;
