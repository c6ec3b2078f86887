-- What models cost, and what accounts have.

-- name: providers
SELECT p.*, (SELECT count(*) FROM Models AS m WHERE m.provider_id = p.provider_id) AS models
FROM Providers AS p
ORDER BY p.name;

-- name: models
SELECT m.model_id, m.name, p.name AS provider, m.is_active, c.input_nano_per_1k,
       c.output_nano_per_1k, c.effective_from
FROM Models AS m
JOIN Providers AS p ON p.provider_id = m.provider_id
LEFT JOIN ModelPricing AS c ON c.model_pricing_id = (
    SELECT model_pricing_id FROM ModelPricing
    WHERE model_id = m.model_id AND effective_from <= :now
    ORDER BY effective_from DESC
    LIMIT 1)
WHERE (:name IS NULL OR m.name = :name) AND (:provider IS NULL OR p.name = :provider)
ORDER BY m.name;

-- name: prices
SELECT model_pricing_id, input_nano_per_1k, output_nano_per_1k, effective_from, created_at
FROM ModelPricing
WHERE model_id = :model_id
ORDER BY effective_from DESC;

-- name: insert_provider
INSERT INTO Providers (name) VALUES (?) RETURNING provider_id;

-- name: insert_model
INSERT INTO Models (provider_id, name) VALUES (?, ?) RETURNING model_id;

-- name: set_price
-- Only of times to come, or of a new model: another price that begins in that second takes the place of
-- the first.
INSERT INTO ModelPricing (model_id, input_nano_per_1k, output_nano_per_1k, effective_from)
VALUES (?, ?, ?, ?)
ON CONFLICT (model_id, effective_from) DO UPDATE SET
    input_nano_per_1k = excluded.input_nano_per_1k,
    output_nano_per_1k = excluded.output_nano_per_1k,
    updated_at = CURRENT_TIMESTAMP;

-- name: price_in_force
SELECT c.model_pricing_id, c.input_nano_per_1k, c.output_nano_per_1k, p.name, m.is_active
FROM Models AS m
LEFT JOIN Providers AS p ON p.provider_id = m.provider_id
LEFT JOIN ModelPricing AS c ON c.model_id = m.model_id AND c.effective_from <= :now
WHERE m.model_id = :model_id
ORDER BY c.effective_from DESC
LIMIT 1;

-- name: balance
SELECT coalesce((SELECT balance_nano FROM CreditBalances WHERE account_id = ?), 0);

-- name: entry_of_request
SELECT * FROM CreditLedger
WHERE request_id = :request_id AND account_id = :account_id AND kind = :kind;

-- name: insert_entry
INSERT INTO CreditLedger (account_id, kind, amount_nano, balance_nano, request_id, note, model,
                          model_pricing_id, input_tokens, output_tokens, usage_id, occurred_at)
VALUES (:account_id, :kind, :amount_nano, :balance_nano, :request_id, :note, :model,
        :model_pricing_id, :input_tokens, :output_tokens, :usage_id, :occurred_at)
RETURNING *;

-- name: statement
SELECT * FROM CreditLedger
WHERE account_id = :account_id AND ledger_id > :after
ORDER BY ledger_id
LIMIT :limit;

-- name: log_usage
INSERT INTO UsageLog (principal_type, principal_id, account_id, service_id, amount, request_id,
                      occurred_at)
VALUES (:principal_type, :principal_id, :account_id, :service_id, :amount, :request_id, :occurred_at)
RETURNING usage_id;

-- name: key_of_account
SELECT api_key_id FROM APIKeys
WHERE (api_key = :api_key OR api_key_hash = :api_key_hash) AND account_id = :account_id
ORDER BY api_key IS NOT :api_key;
