-- What `keystore doctor` asks, and what its --fix writes. {table}, {id} and {parents} are filled with the names of tables and ids.

-- name: integrity
PRAGMA integrity_check(10);

-- name: foreign_keys
PRAGMA foreign_key_check;

-- name: journal_mode
PRAGMA journal_mode;

-- name: sequence
SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = '{table}'), 0),
       coalesce((SELECT max({id}) FROM {table}), 0);

-- name: forget_sequence
DELETE FROM sqlite_sequence WHERE name = ?;

-- name: set_sequence
INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?);

-- name: future_occurrences
SELECT count(*) FROM ChangeLog WHERE occurred_at > datetime('now', '+5 minutes');

-- name: replaying
SELECT replaying FROM StoreInfo;

-- name: unbalanced
-- Accounts whose balance is not what their ledger sums to, or whose ledger does not add up on the way.
SELECT account_id, sum(amount), sum(balance), max(is_broken)
FROM (
    SELECT account_id, amount_nano AS amount, 0 AS balance,
           balance_nano - amount_nano
           <> lag(balance_nano, 1, 0) OVER (PARTITION BY account_id ORDER BY ledger_id) AS is_broken
    FROM CreditLedger
    UNION ALL
    SELECT account_id, 0, balance_nano, 0 FROM CreditBalances
)
GROUP BY account_id
HAVING sum(amount) <> sum(balance) OR max(is_broken);

-- name: gone_with_a_balance
SELECT b.account_id, b.balance_nano
FROM CreditBalances AS b
WHERE b.balance_nano <> 0
  AND NOT EXISTS (SELECT 1 FROM Accounts AS a WHERE a.account_id = b.account_id);

-- name: without_price
-- Active models that have no price, or none yet.
SELECT m.name, EXISTS (SELECT 1 FROM ModelPricing AS c WHERE c.model_id = m.model_id)
FROM Models AS m
WHERE m.is_active
  AND NOT EXISTS (SELECT 1 FROM ModelPricing AS c
                  WHERE c.model_id = m.model_id AND c.effective_from <= CURRENT_TIMESTAMP)
ORDER BY m.name;

-- name: overlapping_prices
-- The schema refuses both: who finds one has a damaged index, or a table that somebody rebuilt. (NOT
-- INDEXED: the table is asked, not the index.)
SELECT c.model_id, c.effective_from
FROM ModelPricing AS c NOT INDEXED
GROUP BY c.model_id, c.effective_from
HAVING count(*) > 1 OR c.effective_from IS NULL;

-- name: role
SELECT role FROM StoreInfo;

-- name: identity
SELECT store_id, incarnation, origin_id, token_prefix FROM StoreInfo;

-- name: contradictions
SELECT k.api_key_id
FROM APIKeys AS k
LEFT JOIN APIKeyStatuses AS s ON s.name = k.status
WHERE k.is_active <> coalesce(s.allows_access AND s.is_active, 0);

-- name: close
-- Only ever takes access away: a key that is not active and has a status that allows is for a person
-- to decide, and denied meanwhile.
UPDATE APIKeys SET is_active = 0
WHERE is_active AND NOT coalesce((SELECT s.allows_access AND s.is_active
                                  FROM APIKeyStatuses AS s WHERE s.name = status), 0);

-- name: end_replaying
UPDATE StoreInfo SET replaying = 0;

-- name: gaps
-- Ids are given without a gap, so a missing one is a change that somebody removed; unless it was
-- compacted.
SELECT max(coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'ChangeLog'), 0),
           coalesce((SELECT max(change_id) FROM ChangeLog), 0))
       - compacted_to
       - (SELECT count(*) FROM ChangeLog AS c WHERE c.change_id > compacted_to)
FROM StoreInfo;

-- name: begin_replaying
UPDATE StoreInfo SET replaying = 1;

-- name: event_texts
SELECT old_status, status, reason FROM APIKeyStatusEvents WHERE event_id = ?;

-- name: set_event_texts
UPDATE APIKeyStatusEvents SET old_status = ?, status = ?, reason = ? WHERE event_id = ?;

-- name: log_event
INSERT INTO ChangeLog (table_name, record_id, operation) VALUES ('APIKeyStatusEvents', ?, 'UPDATE');

-- name: gone_principals
-- (from one id to the next by the index, not row by row)
WITH RECURSIVE ids (id) AS (
    SELECT min(principal_id) FROM {table} WHERE principal_type = ?1
    UNION ALL
    SELECT (SELECT min(u.principal_id) FROM {table} AS u
            WHERE u.principal_type = ?1 AND u.principal_id > ids.id)
    FROM ids WHERE ids.id IS NOT NULL
)
SELECT ids.id FROM ids
WHERE ids.id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM {parents} AS p WHERE p.{id} = ids.id);

-- name: quotas_above_initial
SELECT count(*) FROM APIKeyServiceQuotas WHERE remaining_quota > initial_quota;

-- name: quotas_gone
-- (an update that replaces a quota leaves such a row; it does no harm)
SELECT count(*) FROM QuotaUse WHERE quota_id NOT IN (SELECT quota_id FROM APIKeyServiceQuotas);

-- name: exhausted_with_units
SELECT count(*) FROM APIKeys AS k
WHERE k.status = 'exhausted'
  AND EXISTS (SELECT 1 FROM APIKeyServiceQuotas AS q
              WHERE q.api_key_id = k.api_key_id AND q.remaining_quota > 0);
