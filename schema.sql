-- The store: one SQLite file. Version 6.
--
-- INTEGER identities inside (joins, foreign keys, ChangeLog.record_id), names and UUIDs outside.
-- AUTOINCREMENT everywhere: without it SQLite hands the id of a purged row to the next one, and
-- whoever still holds the old id (a usage row, a replica, a cache) would mean the wrong record.
--
-- Times are UTC text, 'YYYY-MM-DD HH:MM:SS', as CURRENT_TIMESTAMP writes them. The CHECKs refuse
-- every other spelling, days that no calendar has, and years outside 1000 to 2999, so that text order
-- is time order and every time can be pushed, whichever client writes. By way of Unix seconds,
-- because older SQLites return datetime('2027-02-30 …') unchanged; with GLOB and not >=, because
-- TIMESTAMP columns have numeric affinity, which turns '1000' into a number, and every text is
-- above every number.
-- Texts refuse NUL, which PostgreSQL cannot hold: a row that could not be pushed is not accepted.

CREATE TABLE StoreInfo (
    store_info_id INTEGER PRIMARY KEY CHECK (store_info_id = 1),
    store_id CHAR(36) NOT NULL,
    role TEXT NOT NULL CHECK (role IN ('origin', 'replica')),
    -- New at init, at every restore and where an origin reconciles: two files with one store_id are
    -- told apart by it.
    incarnation CHAR(36) NOT NULL,
    -- The store whose rows these are: itself for an origin, the mirrored store for a replica.
    origin_id CHAR(36) NOT NULL,
    token_prefix TEXT NOT NULL,
    -- A replica's state is the origin's state right after change as_of_change; at the time
    -- as_of_at the origin had made no later change. NULL: never synced, so nothing is known.
    as_of_change INTEGER CHECK (typeof(as_of_change) IN ('integer', 'null')),
    as_of_at TIMESTAMP
        CHECK (as_of_at IS datetime(strftime('%s', as_of_at), 'unixepoch') AND as_of_at GLOB '[12]???-*'),
    -- The origin's incarnation that counted as_of_change: another one, put back to an earlier state,
    -- gives the same numbers to other changes.
    origin_incarnation CHAR(36),
    -- What was pulled from signed files may be used until its signatures expire, and then for as long
    -- as the repository allows a replica to be offline. NULL: it came from a hub, and has no such end.
    valid_until TIMESTAMP
        CHECK (valid_until IS datetime(strftime('%s', valid_until), 'unixepoch') AND valid_until GLOB '[12]???-*'),
    max_offline_seconds INTEGER CHECK (typeof(max_offline_seconds) IN ('integer', 'null')),
    -- A time that this machine's clock has shown, noted now and then by a replica: a clock that shows
    -- less was set back. A pull that brings something newer corrects it.
    clock_mark TIMESTAMP
        CHECK (clock_mark IS datetime(strftime('%s', clock_mark), 'unixepoch') AND clock_mark GLOB '[12]???-*'),
    -- 1 only inside the transaction that applies a pull or compacts the ChangeLog: lets these, and
    -- nothing else, write a replica's key tables and remove log rows.
    replaying BOOLEAN NOT NULL DEFAULT 0 CHECK (replaying IN (0, 1)),
    -- The ChangeLog tells nothing of the changes up to here: a target that has acknowledged less
    -- gets everything.
    log_horizon INTEGER NOT NULL DEFAULT 0,
    -- Between the horizon and here only the latest row of each record is kept.
    compacted_to INTEGER NOT NULL DEFAULT 0,
    created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CHECK (role = 'replica' OR origin_id = store_id)
);

CREATE TABLE Plans (
    plan_id INTEGER PRIMARY KEY AUTOINCREMENT CHECK (plan_id > 0),
    name TEXT NOT NULL UNIQUE
        CHECK (typeof(name) = 'text' AND name <> '' AND instr(name, char(0)) = 0),
    -- How old a replica's data may be before this plan's keys are answered by stale_action.
    -- NULL: any age is good enough.
    max_staleness_seconds INTEGER
        CHECK (max_staleness_seconds IS NULL
               OR (typeof(max_staleness_seconds) = 'integer' AND max_staleness_seconds > 0)),
    stale_action TEXT NOT NULL DEFAULT 'deny' CHECK (stale_action IN ('deny', 'allow')),
    -- How many checks each key may pass at an edge in how many seconds, and how many of them at once
    -- (NULL: all). No limit: no rate.
    rate_limit INTEGER
        CHECK (rate_limit IS NULL OR (typeof(rate_limit) = 'integer' AND rate_limit > 0)),
    rate_window_seconds INTEGER
        CHECK (rate_window_seconds IS NULL
               OR (typeof(rate_window_seconds) = 'integer' AND rate_window_seconds > 0)),
    rate_burst INTEGER
        CHECK (rate_burst IS NULL OR (typeof(rate_burst) = 'integer' AND rate_burst > 0)),
    created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
        CHECK (created_at IS datetime(strftime('%s', created_at), 'unixepoch') AND created_at GLOB '[12]???-*'),
    updated_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
        CHECK (updated_at IS datetime(strftime('%s', updated_at), 'unixepoch') AND updated_at GLOB '[12]???-*'),
    CHECK ((rate_limit IS NULL) = (rate_window_seconds IS NULL)),
    CHECK (rate_burst IS NULL OR rate_limit IS NOT NULL)
);

CREATE TABLE Accounts (
    account_id INTEGER PRIMARY KEY AUTOINCREMENT CHECK (account_id > 0),
    email TEXT NOT NULL COLLATE NOCASE UNIQUE
        CHECK (typeof(email) = 'text' AND email <> '' AND instr(email, char(0)) = 0),
    plan_id INTEGER NOT NULL REFERENCES Plans (plan_id) CHECK (typeof(plan_id) = 'integer'),
    is_active BOOLEAN NOT NULL DEFAULT 1 CHECK (is_active IN (0, 1)),
    created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
        CHECK (created_at IS datetime(strftime('%s', created_at), 'unixepoch') AND created_at GLOB '[12]???-*'),
    updated_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
        CHECK (updated_at IS datetime(strftime('%s', updated_at), 'unixepoch') AND updated_at GLOB '[12]???-*')
);
CREATE INDEX idx_accounts_plan_id ON Accounts (plan_id);

CREATE TABLE Services (
    service_id INTEGER PRIMARY KEY AUTOINCREMENT CHECK (service_id > 0),
    name TEXT NOT NULL UNIQUE
        CHECK (typeof(name) = 'text' AND name <> '' AND instr(name, char(0)) = 0),
    is_active BOOLEAN NOT NULL DEFAULT 1 CHECK (is_active IN (0, 1)),
    created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
        CHECK (created_at IS datetime(strftime('%s', created_at), 'unixepoch') AND created_at GLOB '[12]???-*'),
    updated_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
        CHECK (updated_at IS datetime(strftime('%s', updated_at), 'unixepoch') AND updated_at GLOB '[12]???-*')
);

-- The statuses that a key may have; a new one is an INSERT away, and denies until it says otherwise.
CREATE TABLE APIKeyStatuses (
    status_id INTEGER PRIMARY KEY AUTOINCREMENT CHECK (status_id > 0),
    name TEXT NOT NULL UNIQUE
        CHECK (typeof(name) = 'text' AND name <> '' AND instr(name, char(0)) = 0),
    description TEXT CHECK (description IS NULL OR (typeof(description) = 'text' AND instr(description, char(0)) = 0)),
    -- 0: no longer to be given to a key; keys that have it are denied
    is_active BOOLEAN NOT NULL DEFAULT 1 CHECK (is_active IN (0, 1)),
    allows_access BOOLEAN NOT NULL DEFAULT 0 CHECK (allows_access IN (0, 1)),
    created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
        CHECK (created_at IS datetime(strftime('%s', created_at), 'unixepoch') AND created_at GLOB '[12]???-*'),
    updated_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
        CHECK (updated_at IS datetime(strftime('%s', updated_at), 'unixepoch') AND updated_at GLOB '[12]???-*'),
    -- the status that keys are born with; the triggers that keep is_active in step rely on it
    CHECK (name <> 'assigned' OR (is_active AND allows_access)),
    CHECK (name <> 'revoked' OR NOT allows_access),
    CHECK (name <> 'deleted') -- what the timeline says of a key that is gone
);

CREATE TABLE APIKeys (
    api_key_id INTEGER PRIMARY KEY AUTOINCREMENT CHECK (api_key_id > 0),
    api_key CHAR(36) NOT NULL UNIQUE
        CHECK (typeof(api_key) = 'text' AND instr(api_key, char(0)) = 0
               AND api_key GLOB '????????-????-????-????-????????????'
               AND length(replace(api_key, '-', '')) = 32
               AND replace(api_key, '-', '') NOT GLOB '*[^0-9a-f]*'),
    account_id INTEGER NOT NULL REFERENCES Accounts (account_id) ON DELETE CASCADE
        CHECK (typeof(account_id) = 'integer'),
    -- SHA-256 of the token in hex. The token itself is shown once and kept nowhere.
    api_key_hash TEXT NOT NULL UNIQUE
        CHECK (typeof(api_key_hash) = 'text' AND instr(api_key_hash, char(0)) = 0
               AND length(api_key_hash) = 64
               AND api_key_hash NOT GLOB '*[^0-9a-f]*'),
    -- Two words for one truth: is_active is whether the status lets the key pass. Triggers keep them
    -- in step, whichever of the two is written.
    is_active BOOLEAN NOT NULL DEFAULT 1 CHECK (is_active IN (0, 1)),
    status TEXT NOT NULL DEFAULT 'assigned' REFERENCES APIKeyStatuses (name) ON UPDATE CASCADE
        CHECK (typeof(status) = 'text' AND instr(status, char(0)) = 0),
    -- why it has this status; goes into the timeline
    status_reason TEXT CHECK (status_reason IS NULL OR (typeof(status_reason) = 'text' AND instr(status_reason, char(0)) = 0)),
    label TEXT CHECK (label IS NULL OR (typeof(label) = 'text' AND instr(label, char(0)) = 0)),
    expires_at TIMESTAMP
        CHECK (expires_at IS datetime(strftime('%s', expires_at), 'unixepoch') AND expires_at GLOB '[12]???-*'),
    -- networks that the key may be used from, in CIDR notation, separated by blanks; NULL: any
    allowed_networks TEXT CHECK (allowed_networks IS NULL OR (typeof(allowed_networks) = 'text'
        AND allowed_networks <> '' AND instr(allowed_networks, char(0)) = 0)),
    -- a JSON object of the operator's own (not checked by json_valid(): with trusted_schema off, older
    -- SQLites call that an unsafe function, and then cannot even read the schema)
    metadata TEXT CHECK (metadata IS NULL OR (typeof(metadata) = 'text' AND metadata <> ''
        AND instr(metadata, char(0)) = 0)),
    created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
        CHECK (created_at IS datetime(strftime('%s', created_at), 'unixepoch') AND created_at GLOB '[12]???-*'),
    updated_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
        CHECK (updated_at IS datetime(strftime('%s', updated_at), 'unixepoch') AND updated_at GLOB '[12]???-*')
);
CREATE INDEX idx_apikeys_account_id ON APIKeys (account_id);
CREATE INDEX idx_apikeys_status ON APIKeys (status) WHERE status <> 'assigned';

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

-- The timeline of each key: every change of status, written by triggers, never changed afterwards. No
-- foreign key: it outlives the key. That a key was made is in APIKeys.created_at.
CREATE TABLE APIKeyStatusEvents (
    event_id INTEGER PRIMARY KEY AUTOINCREMENT CHECK (event_id > 0),
    api_key_id INTEGER NOT NULL,
    api_key CHAR(36) NOT NULL,
    old_status TEXT,
    status TEXT NOT NULL, -- 'deleted' when the key is gone
    reason TEXT,
    occurred_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
);
CREATE INDEX idx_apikeystatusevents_api_key ON APIKeyStatusEvents (api_key, event_id);

CREATE TABLE OAuthClients (
    oauth_client_id INTEGER PRIMARY KEY AUTOINCREMENT CHECK (oauth_client_id > 0),
    client_id TEXT NOT NULL UNIQUE
        CHECK (typeof(client_id) = 'text' AND client_id <> '' AND instr(client_id, char(0)) = 0),
    account_id INTEGER NOT NULL REFERENCES Accounts (account_id) ON DELETE CASCADE
        CHECK (typeof(account_id) = 'integer'),
    client_secret_hash TEXT NOT NULL
        CHECK (typeof(client_secret_hash) = 'text' AND instr(client_secret_hash, char(0)) = 0
               AND length(client_secret_hash) = 64
               AND client_secret_hash NOT GLOB '*[^0-9a-f]*'),
    is_active BOOLEAN NOT NULL DEFAULT 1 CHECK (is_active IN (0, 1)),
    created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
        CHECK (created_at IS datetime(strftime('%s', created_at), 'unixepoch') AND created_at GLOB '[12]???-*'),
    updated_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
        CHECK (updated_at IS datetime(strftime('%s', updated_at), 'unixepoch') AND updated_at GLOB '[12]???-*')
);
CREATE INDEX idx_oauthclients_account_id ON OAuthClients (account_id);

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

-- No UNIQUE and no CHECK here: an outer INSERT OR IGNORE overrides the conflict clause inside a
-- trigger, so a constraint that fails would drop the log row and keep the change.
CREATE TABLE ChangeLog (
    change_id INTEGER PRIMARY KEY AUTOINCREMENT,
    table_name TEXT NOT NULL,
    record_id INTEGER NOT NULL,
    operation TEXT NOT NULL,
    occurred_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP
);

-- Append-only, owned by the store that wrote it. No foreign key: the subject may be any kind of
-- principal, and the trail outlives it. account_id is copied for the same reason.
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

-- Keys that were revoked at a hub: a set that only grows. A key in it never passes again, whatever its
-- row says, so the revocation needs not wait for the origin.
CREATE TABLE Revocations (
    revocation_id INTEGER PRIMARY KEY AUTOINCREMENT,
    api_key CHAR(36) NOT NULL UNIQUE
        CHECK (typeof(api_key) = 'text' AND length(api_key) = 36
               AND replace(api_key, '-', '') NOT GLOB '*[^0-9a-f]*'),
    reason TEXT CHECK (reason IS NULL OR (typeof(reason) = 'text' AND instr(reason, char(0)) = 0)),
    -- the hub's clock
    revoked_at TIMESTAMP NOT NULL
        CHECK (revoked_at IS datetime(strftime('%s', revoked_at), 'unixepoch') AND revoked_at GLOB '[12]???-*'),
    received_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
);

-- One row per target that this store has synced with. A target is known by the identity that it
-- states itself, not by its URL: a hub that moves keeps its cursor, a hub that was made anew
-- starts from nothing.
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

-- At an origin: the keys that replicas sign their usage files with. A key that was revoked stays, so
-- that what it signed is refused by name.
CREATE TABLE UsageKeys (
    usage_key_id INTEGER PRIMARY KEY AUTOINCREMENT,
    -- the replica's
    store_id CHAR(36) NOT NULL,
    -- SHA-256 of the public key (DER) in hex
    fingerprint TEXT NOT NULL UNIQUE,
    public_key TEXT NOT NULL,
    label TEXT,
    enrolled_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
    revoked_at TIMESTAMP
);

-- The usage files that this replica has written, or that this origin has taken in. Numbers count
-- from 1 for each incarnation of a store, so that a missing one is a gap.
CREATE TABLE UsageFiles (
    usage_file_id INTEGER PRIMARY KEY AUTOINCREMENT,
    store_id CHAR(36) NOT NULL,
    incarnation CHAR(36) NOT NULL,
    number INTEGER NOT NULL CHECK (typeof(number) = 'integer' AND number > 0),
    first_usage_id INTEGER NOT NULL,
    last_usage_id INTEGER NOT NULL,
    -- SHA-256 of its lines in hex: the same whichever key signs them, and however they are packed
    digest TEXT NOT NULL,
    -- 1: noted by the replica, and perhaps not written yet; its next export writes it
    is_pending BOOLEAN NOT NULL DEFAULT 0 CHECK (is_pending IN (0, 1)),
    created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
    UNIQUE (store_id, incarnation, number, digest)
);

-- At an origin: usage that replicas have handed up in signed files, each row once. Its identity is
-- the hub's.
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
