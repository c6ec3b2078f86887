-- Version 5 to 6: quotas that are spent, credits, and usage by service. Rebuilt and not altered; see 0002.sql.

ALTER TABLE APIKeyServiceQuotas RENAME TO APIKeyServiceQuotasOfVersion5;
DROP INDEX idx_apikeyservicequotas_service_id;

CREATE TABLE APIKeyServiceQuotas (
    quota_id INTEGER PRIMARY KEY AUTOINCREMENT CHECK (quota_id > 0),
    api_key_id INTEGER NOT NULL REFERENCES APIKeys (api_key_id) ON DELETE CASCADE
        CHECK (typeof(api_key_id) = 'integer'),
    service_id INTEGER NOT NULL REFERENCES Services (service_id) ON DELETE CASCADE
        CHECK (typeof(service_id) = 'integer'),
    initial_quota INTEGER NOT NULL CHECK (typeof(initial_quota) = 'integer' AND initial_quota >= 0),
    -- What is left of it in the period that began at renewed_at, as far as the origin knew. In a later
    -- period the initial quota is there again, whether the origin has said so or not.
    remaining_quota INTEGER NOT NULL
        CHECK (typeof(remaining_quota) = 'integer' AND remaining_quota >= 0),
    renewal TEXT NOT NULL DEFAULT 'never' CHECK (renewal IN ('never', 'daily', 'monthly')),
    renewed_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
        CHECK (renewed_at IS datetime(strftime('%s', renewed_at), 'unixepoch') AND renewed_at GLOB '[12]???-*'),
    created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
        CHECK (created_at IS datetime(strftime('%s', created_at), 'unixepoch') AND created_at GLOB '[12]???-*'),
    updated_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
        CHECK (updated_at IS datetime(strftime('%s', updated_at), 'unixepoch') AND updated_at GLOB '[12]???-*'),
    UNIQUE (api_key_id, service_id)
);
CREATE INDEX idx_apikeyservicequotas_service_id ON APIKeyServiceQuotas (service_id);
CREATE INDEX idx_apikeyservicequotas_used ON APIKeyServiceQuotas (renewal, renewed_at)
    WHERE remaining_quota < initial_quota;
CREATE INDEX idx_apikeyservicequotas_used_up ON APIKeyServiceQuotas (api_key_id)
    WHERE remaining_quota = 0;

INSERT INTO APIKeyServiceQuotas (quota_id, api_key_id, service_id, initial_quota, remaining_quota, renewal,
                                 renewed_at, created_at, updated_at)
SELECT quota_id, api_key_id, service_id, initial_quota, remaining_quota, renewal, updated_at, created_at,
       updated_at
FROM APIKeyServiceQuotasOfVersion5;

DELETE FROM sqlite_sequence WHERE name = 'APIKeyServiceQuotas';
INSERT INTO sqlite_sequence (name, seq)
SELECT 'APIKeyServiceQuotas', seq FROM sqlite_sequence WHERE name = 'APIKeyServiceQuotasOfVersion5';

DROP TABLE APIKeyServiceQuotasOfVersion5;

-- What keys that are issued on a plan get.
CREATE TABLE PlanServiceQuotas (
    plan_quota_id INTEGER PRIMARY KEY AUTOINCREMENT CHECK (plan_quota_id > 0),
    plan_id INTEGER NOT NULL REFERENCES Plans (plan_id) ON DELETE CASCADE
        CHECK (typeof(plan_id) = 'integer'),
    service_id INTEGER NOT NULL REFERENCES Services (service_id) ON DELETE CASCADE
        CHECK (typeof(service_id) = 'integer'),
    initial_quota INTEGER NOT NULL CHECK (typeof(initial_quota) = 'integer' AND initial_quota >= 0),
    renewal TEXT NOT NULL DEFAULT 'never' CHECK (renewal IN ('never', 'daily', 'monthly')),
    created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
        CHECK (created_at IS datetime(strftime('%s', created_at), 'unixepoch') AND created_at GLOB '[12]???-*'),
    updated_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
        CHECK (updated_at IS datetime(strftime('%s', updated_at), 'unixepoch') AND updated_at GLOB '[12]???-*'),
    UNIQUE (plan_id, service_id)
);
CREATE INDEX idx_planservicequotas_service_id ON PlanServiceQuotas (service_id);

-- What the models of language cost. Money is in nano-credits, 1e-9 of a credit: real price lists go down to
-- 1.3e-10 for a token, and 1,000 tokens at that price are a whole number of nano-credits. Never floats.
CREATE TABLE Providers (
    provider_id INTEGER PRIMARY KEY AUTOINCREMENT CHECK (provider_id > 0),
    name TEXT NOT NULL UNIQUE
        CHECK (typeof(name) = 'text' AND name <> '' AND instr(name, char(0)) = 0),
    created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
        CHECK (created_at IS datetime(strftime('%s', created_at), 'unixepoch') AND created_at GLOB '[12]???-*'),
    updated_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
        CHECK (updated_at IS datetime(strftime('%s', updated_at), 'unixepoch') AND updated_at GLOB '[12]???-*')
);

CREATE TABLE Models (
    model_id INTEGER PRIMARY KEY AUTOINCREMENT CHECK (model_id > 0),
    provider_id INTEGER NOT NULL REFERENCES Providers (provider_id)
        CHECK (typeof(provider_id) = 'integer'),
    name TEXT NOT NULL UNIQUE
        CHECK (typeof(name) = 'text' AND name <> '' AND instr(name, char(0)) = 0),
    is_active BOOLEAN NOT NULL DEFAULT 1 CHECK (is_active IN (0, 1)),
    created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
        CHECK (created_at IS datetime(strftime('%s', created_at), 'unixepoch') AND created_at GLOB '[12]???-*'),
    updated_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
        CHECK (updated_at IS datetime(strftime('%s', updated_at), 'unixepoch') AND updated_at GLOB '[12]???-*')
);
CREATE INDEX idx_models_provider_id ON Models (provider_id);

-- In force is the price with the latest effective_from that is not in the future, so prices neither
-- overlap nor leave a gap. A price that was in force is never changed: what it has cost stays explained.
CREATE TABLE ModelPricing (
    model_pricing_id INTEGER PRIMARY KEY AUTOINCREMENT CHECK (model_pricing_id > 0),
    model_id INTEGER NOT NULL REFERENCES Models (model_id) ON DELETE CASCADE
        CHECK (typeof(model_id) = 'integer'),
    input_nano_per_1k INTEGER NOT NULL CHECK (typeof(input_nano_per_1k) = 'integer' AND input_nano_per_1k >= 0),
    output_nano_per_1k INTEGER NOT NULL CHECK (typeof(output_nano_per_1k) = 'integer' AND output_nano_per_1k >= 0),
    effective_from TIMESTAMP NOT NULL
        CHECK (effective_from IS datetime(strftime('%s', effective_from), 'unixepoch') AND effective_from GLOB '[12]???-*'),
    created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
        CHECK (created_at IS datetime(strftime('%s', created_at), 'unixepoch') AND created_at GLOB '[12]???-*'),
    updated_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
        CHECK (updated_at IS datetime(strftime('%s', updated_at), 'unixepoch') AND updated_at GLOB '[12]???-*'),
    UNIQUE (model_id, effective_from)
);

-- Up to which row of a store's UsageLog the remaining quotas have it deducted. What a replica has used
-- since, it deducts itself.
CREATE TABLE UsageSettlements (
    settlement_id INTEGER PRIMARY KEY AUTOINCREMENT CHECK (settlement_id > 0),
    replica_id CHAR(36) NOT NULL UNIQUE
        CHECK (typeof(replica_id) = 'text' AND length(replica_id) = 36
               AND replace(replica_id, '-', '') NOT GLOB '*[^0-9a-f]*'),
    usage_id INTEGER NOT NULL CHECK (typeof(usage_id) = 'integer' AND usage_id >= 0),
    created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
        CHECK (created_at IS datetime(strftime('%s', created_at), 'unixepoch') AND created_at GLOB '[12]???-*'),
    updated_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
        CHECK (updated_at IS datetime(strftime('%s', updated_at), 'unixepoch') AND updated_at GLOB '[12]???-*')
);

ALTER TABLE UsageLog RENAME TO UsageLogOfVersion5;

CREATE TABLE UsageLog (
    usage_id INTEGER PRIMARY KEY AUTOINCREMENT CHECK (usage_id > 0),
    principal_type TEXT NOT NULL CHECK (principal_type IN ('api_key', 'oauth_client', 'session')),
    principal_id INTEGER NOT NULL CHECK (typeof(principal_id) = 'integer'),
    account_id INTEGER CHECK (typeof(account_id) IN ('integer', 'null')),
    service_id INTEGER CHECK (typeof(service_id) IN ('integer', 'null')),
    amount INTEGER NOT NULL CHECK (typeof(amount) = 'integer' AND amount >= 0),
    request_id TEXT
        CHECK (request_id IS NULL
               OR (typeof(request_id) = 'text' AND instr(request_id, char(0)) = 0)),
    occurred_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
        CHECK (occurred_at IS datetime(strftime('%s', occurred_at), 'unixepoch') AND occurred_at GLOB '[12]???-*'),
    -- Tells two rows of one id apart that two copies of this file have written, so that a target can
    -- take the rows of both, and each row once.
    nonce INTEGER NOT NULL DEFAULT (random()) CHECK (typeof(nonce) = 'integer')
);
-- (with the amount, so that a report reads an index and no rows)
CREATE INDEX idx_usagelog_principal ON UsageLog (principal_type, principal_id, occurred_at, amount);
CREATE INDEX idx_usagelog_account ON UsageLog (account_id, occurred_at, amount);
CREATE INDEX idx_usagelog_service ON UsageLog (service_id, occurred_at, amount);
CREATE INDEX idx_usagelog_occurred_at ON UsageLog (occurred_at, amount);
CREATE INDEX idx_usagelog_request ON UsageLog (request_id) WHERE request_id IS NOT NULL;

INSERT INTO UsageLog (usage_id, principal_type, principal_id, account_id, amount, request_id, occurred_at, nonce)
SELECT usage_id, principal_type, principal_id, account_id, amount, request_id, occurred_at, nonce
FROM UsageLogOfVersion5;

DELETE FROM sqlite_sequence WHERE name = 'UsageLog';
INSERT INTO sqlite_sequence (name, seq)
SELECT 'UsageLog', seq FROM sqlite_sequence WHERE name = 'UsageLogOfVersion5';

DROP TABLE UsageLogOfVersion5;

-- UsageLog rows that were older than the retention, summed by the hour; no total changes by it.
CREATE TABLE UsageHours (
    hour TIMESTAMP NOT NULL,
    principal_type TEXT NOT NULL,
    principal_id INTEGER NOT NULL,
    account_id INTEGER,
    service_id INTEGER,
    amount INTEGER NOT NULL CHECK (typeof(amount) = 'integer'),
    rows INTEGER NOT NULL CHECK (typeof(rows) = 'integer')
);
CREATE UNIQUE INDEX idx_usagehours_identity ON UsageHours
    (hour, principal_type, principal_id, coalesce(account_id, 0), coalesce(service_id, 0));
CREATE INDEX idx_usagehours_principal ON UsageHours (principal_type, principal_id, hour, amount, rows);
CREATE INDEX idx_usagehours_account ON UsageHours (account_id, hour, amount, rows);
CREATE INDEX idx_usagehours_service ON UsageHours (service_id, hour, amount, rows);

-- What of each quota was used here, and is not in remaining_quota yet: spent is in the UsageLog, leased is
-- what processes have taken to spend. What a process that died had leased stays leased until the quota
-- is renewed: nobody knows whether it was spent.
CREATE TABLE QuotaUse (
    quota_id INTEGER PRIMARY KEY,
    -- the period (its renewed_at) and the settlement that the two are counted from
    period TIMESTAMP NOT NULL,
    settled_usage INTEGER NOT NULL DEFAULT 0,
    spent INTEGER NOT NULL DEFAULT 0 CHECK (typeof(spent) = 'integer' AND spent >= 0),
    leased INTEGER NOT NULL DEFAULT 0 CHECK (typeof(leased) = 'integer' AND leased >= 0)
);

-- At an origin: who a key's quotas have gone to when it was rotated. What the old key used before, and is
-- told of later, is its successor's.
CREATE TABLE QuotaSuccessors (
    api_key_id INTEGER PRIMARY KEY,
    successor_id INTEGER NOT NULL
);
CREATE INDEX idx_quotasuccessors_successor_id ON QuotaSuccessors (successor_id);

-- What an account has, at the store that keeps its ledger. It cannot go below zero, whoever writes.
CREATE TABLE CreditBalances (
    account_id INTEGER PRIMARY KEY CHECK (account_id > 0),
    balance_nano INTEGER NOT NULL CHECK (typeof(balance_nano) = 'integer' AND balance_nano >= 0)
);

-- Append-only, owned by the store that wrote it; its triggers keep the balance. No foreign keys: the trail
-- outlives what it tells of.
CREATE TABLE CreditLedger (
    ledger_id INTEGER PRIMARY KEY AUTOINCREMENT CHECK (ledger_id > 0),
    account_id INTEGER NOT NULL CHECK (typeof(account_id) = 'integer' AND account_id > 0),
    kind TEXT NOT NULL CHECK (kind IN ('grant', 'charge')),
    -- positive for a grant, negative for a charge
    amount_nano INTEGER NOT NULL CHECK (typeof(amount_nano) = 'integer'),
    balance_nano INTEGER NOT NULL CHECK (typeof(balance_nano) = 'integer' AND balance_nano >= 0),
    request_id TEXT
        CHECK (request_id IS NULL
               OR (typeof(request_id) = 'text' AND request_id <> '' AND instr(request_id, char(0)) = 0)),
    note TEXT CHECK (note IS NULL OR (typeof(note) = 'text' AND instr(note, char(0)) = 0)),
    -- of a charge: for what, by which price, and its row in the UsageLog
    model TEXT CHECK (model IS NULL OR (typeof(model) = 'text' AND instr(model, char(0)) = 0)),
    model_pricing_id INTEGER CHECK (typeof(model_pricing_id) IN ('integer', 'null')),
    input_tokens INTEGER
        CHECK (input_tokens IS NULL OR (typeof(input_tokens) = 'integer' AND input_tokens >= 0)),
    output_tokens INTEGER
        CHECK (output_tokens IS NULL OR (typeof(output_tokens) = 'integer' AND output_tokens >= 0)),
    usage_id INTEGER CHECK (typeof(usage_id) IN ('integer', 'null')),
    occurred_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
        CHECK (occurred_at IS datetime(strftime('%s', occurred_at), 'unixepoch') AND occurred_at GLOB '[12]???-*'),
    -- see UsageLog
    nonce INTEGER NOT NULL DEFAULT (random()) CHECK (typeof(nonce) = 'integer'),
    CHECK ((kind = 'grant' AND amount_nano > 0) OR (kind = 'charge' AND amount_nano <= 0))
);
CREATE INDEX idx_creditledger_account ON CreditLedger (account_id, ledger_id);
CREATE INDEX idx_creditledger_request ON CreditLedger (request_id) WHERE request_id IS NOT NULL;

ALTER TABLE SyncTargets RENAME TO SyncTargetsOfVersion5;

CREATE TABLE SyncTargets (
    sync_target_id INTEGER PRIMARY KEY AUTOINCREMENT,
    target_id TEXT NOT NULL UNIQUE,
    -- where it was last found, without any secret; NULL when another target answers there now
    url TEXT UNIQUE,
    -- push: all changes up to this one are at the target
    acknowledged_change INTEGER NOT NULL DEFAULT 0,
    -- What the target must show before it gets more, and what it will show afterwards: of an origin
    -- with its pushes, of a replica when it says what it has. pending_token is written before, so that
    -- a lost acknowledgement is recognised.
    push_token CHAR(36),
    pending_token CHAR(36),
    -- usage: all rows up to this one are at the target
    acknowledged_usage INTEGER NOT NULL DEFAULT 0,
    -- ledger: all rows up to this one are at the target
    acknowledged_ledger INTEGER NOT NULL DEFAULT 0,
    -- pull: what the source wants back next time; for a file repository the pinned root and the
    -- newest signed metadata seen, so that nothing older is ever accepted again
    source_state TEXT,
    -- The hub's number of the latest revocation that this store has, and its key: a hub that was put
    -- back to an earlier state has another key under that number, or none.
    acknowledged_revocation INTEGER NOT NULL DEFAULT 0,
    last_revocation CHAR(36),
    -- 1: this store only hands its usage up there and gets its keys elsewhere
    usage_only BOOLEAN NOT NULL DEFAULT 0 CHECK (usage_only IN (0, 1)),
    synced_at TIMESTAMP
        CHECK (synced_at IS datetime(strftime('%s', synced_at), 'unixepoch') AND synced_at GLOB '[12]???-*')
);

INSERT INTO SyncTargets (sync_target_id, target_id, url, acknowledged_change, push_token, pending_token,
                         acknowledged_usage, source_state, acknowledged_revocation, last_revocation,
                         usage_only, synced_at)
SELECT sync_target_id, target_id, url, acknowledged_change, push_token, pending_token,
                         acknowledged_usage, source_state, acknowledged_revocation, last_revocation,
                         usage_only, synced_at
FROM SyncTargetsOfVersion5;

DELETE FROM sqlite_sequence WHERE name = 'SyncTargets';
INSERT INTO sqlite_sequence (name, seq)
SELECT 'SyncTargets', seq FROM sqlite_sequence WHERE name = 'SyncTargetsOfVersion5';

DROP TABLE SyncTargetsOfVersion5;

ALTER TABLE ReceivedUsage RENAME TO ReceivedUsageOfVersion5;

CREATE TABLE ReceivedUsage (
    store_id CHAR(36) NOT NULL,
    usage_id INTEGER NOT NULL CHECK (usage_id > 0),
    nonce INTEGER NOT NULL CHECK (typeof(nonce) = 'integer'),
    principal_type TEXT NOT NULL CHECK (principal_type IN ('api_key', 'oauth_client', 'session')),
    principal_id INTEGER NOT NULL CHECK (typeof(principal_id) = 'integer'),
    account_id INTEGER CHECK (typeof(account_id) IN ('integer', 'null')),
    service_id INTEGER CHECK (typeof(service_id) IN ('integer', 'null')),
    amount INTEGER NOT NULL CHECK (typeof(amount) = 'integer' AND amount >= 0),
    request_id TEXT
        CHECK (request_id IS NULL
               OR (typeof(request_id) = 'text' AND instr(request_id, char(0)) = 0)),
    occurred_at TIMESTAMP NOT NULL
        CHECK (occurred_at IS datetime(strftime('%s', occurred_at), 'unixepoch') AND occurred_at GLOB '[12]???-*'),
    received_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
    PRIMARY KEY (store_id, usage_id, nonce)
) WITHOUT ROWID;
CREATE INDEX idx_receivedusage_principal
    ON ReceivedUsage (principal_type, principal_id, occurred_at, amount);
CREATE INDEX idx_receivedusage_account ON ReceivedUsage (account_id, occurred_at, amount);
CREATE INDEX idx_receivedusage_service ON ReceivedUsage (service_id, occurred_at, amount);
CREATE INDEX idx_receivedusage_occurred_at ON ReceivedUsage (occurred_at, amount);
CREATE INDEX idx_receivedusage_request ON ReceivedUsage (request_id) WHERE request_id IS NOT NULL;

INSERT INTO ReceivedUsage (store_id, usage_id, nonce, principal_type, principal_id, account_id, amount,
                           request_id, occurred_at, received_at)
SELECT store_id, usage_id, nonce, principal_type, principal_id, account_id, amount,
                           request_id, occurred_at, received_at
FROM ReceivedUsageOfVersion5;

DROP TABLE ReceivedUsageOfVersion5;
