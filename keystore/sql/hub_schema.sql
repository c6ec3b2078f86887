-- The hub: a schema in a central PostgreSQL (15 or newer). Version 5.
--
-- Rows are keyed by (store_id, <internal id of that store>), so that many origins share a hub and
-- no identity has to be made up. No foreign keys between mirrored tables: the hub holds what the
-- origin holds, and an origin may hold orphans that some client left there; a constraint here
-- would turn one bad row into a push that never ends.
--
-- changed_at_id of a row is the origin's change up to which the push went that last wrote it. Pushes
-- of one store take turns (they lock its row in stores), so a replica that has everything up to
-- change N finds what it lacks by changed_at_id > N, and a hub that was put back to an earlier state
-- cannot make it skip anything, because the count is the origin's and not the hub's.
--
-- Every key leads with store_id, so that a distributed PostgreSQL can spread the tables by it.

CREATE SCHEMA keystore;

CREATE TABLE keystore.hub_info (
    hub_info_id SMALLINT PRIMARY KEY CHECK (hub_info_id = 1),
    hub_id UUID NOT NULL,
    schema_version INTEGER NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);

CREATE TABLE keystore.stores (
    store_id UUID PRIMARY KEY,
    incarnation UUID NOT NULL,
    token_prefix TEXT NOT NULL,
    schema_version INTEGER NOT NULL,
    acknowledged_change BIGINT NOT NULL,
    push_token UUID,
    -- origin's clock: no change later than acknowledged_change had been made then
    as_of_at TIMESTAMPTZ,
    -- rows by table, as the origin counted them at that change; not what is counted here, so that rows
    -- that get lost here are noticed
    record_counts JSONB,
    -- what was deleted up to this change is forgotten: who asks for what is later than an earlier
    -- change gets everything
    tombstone_horizon BIGINT NOT NULL DEFAULT 0,
    -- number of the latest revocation that the origin has
    seen_revocation BIGINT NOT NULL DEFAULT 0,
    program_version TEXT NOT NULL DEFAULT '',
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    last_seen_at TIMESTAMPTZ NOT NULL DEFAULT now()
);

-- What each replica said of itself when it last called. One file may have had several incarnations: it
-- gets a new one when it is restored, or when it finds that a copy of it calls here, too.
CREATE TABLE keystore.replicas (
    store_id UUID NOT NULL,
    incarnation UUID NOT NULL,
    origin_id UUID NOT NULL,
    token UUID NOT NULL,
    schema_version INTEGER NOT NULL,
    program_version TEXT NOT NULL,
    as_of_change BIGINT NOT NULL,
    as_of_at TIMESTAMPTZ NOT NULL,
    seen_revocation BIGINT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    last_seen_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (store_id, incarnation)
);
CREATE INDEX replicas_origin ON keystore.replicas (origin_id);

-- Keys revoked here: a set that only grows. store_id is the key's origin. The numbers come from
-- revocation_heads, whose row is locked until the commit, so their order is the order of the commits
-- and nobody who reads on from a number misses one. (Not the row in stores: a long push holds that.)
CREATE TABLE keystore.revocations (
    store_id UUID NOT NULL,
    api_key UUID NOT NULL,
    revocation_id BIGINT NOT NULL,
    reason TEXT,
    revoked_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (store_id, api_key),
    UNIQUE (store_id, revocation_id)
);

CREATE TABLE keystore.revocation_heads (
    store_id UUID PRIMARY KEY,
    head BIGINT NOT NULL
);

-- Who else than the owner may do what; see the policies below and `keystore hub grant`.
--   push  role_name is origin store_id
--   pull  role_name is a replica of origin store_id
--   own   role_name was the first to call as replica store_id; nobody else may
CREATE TABLE keystore.grants (
    store_id UUID NOT NULL,
    role_name NAME NOT NULL,
    access TEXT NOT NULL CHECK (access IN ('push', 'pull', 'own')),
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (store_id, role_name, access)
);
CREATE UNIQUE INDEX grants_own ON keystore.grants (store_id) WHERE access = 'own';

CREATE TABLE keystore.plans (
    store_id UUID NOT NULL,
    plan_id BIGINT NOT NULL,
    name TEXT NOT NULL,
    max_staleness_seconds BIGINT,
    stale_action TEXT NOT NULL,
    rate_limit BIGINT,
    rate_window_seconds BIGINT,
    rate_burst BIGINT,
    created_at TIMESTAMPTZ NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    changed_at_id BIGINT NOT NULL,
    PRIMARY KEY (store_id, plan_id)
);
CREATE INDEX plans_changed_at ON keystore.plans (store_id, changed_at_id);

CREATE TABLE keystore.accounts (
    store_id UUID NOT NULL,
    account_id BIGINT NOT NULL,
    email TEXT NOT NULL,
    plan_id BIGINT NOT NULL,
    is_active BOOLEAN NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    changed_at_id BIGINT NOT NULL,
    PRIMARY KEY (store_id, account_id)
);
CREATE INDEX accounts_changed_at ON keystore.accounts (store_id, changed_at_id);

CREATE TABLE keystore.api_keys (
    store_id UUID NOT NULL,
    api_key_id BIGINT NOT NULL,
    api_key UUID NOT NULL,
    account_id BIGINT NOT NULL,
    api_key_hash TEXT NOT NULL,
    is_active BOOLEAN NOT NULL,
    status TEXT NOT NULL,
    status_reason TEXT,
    label TEXT,
    expires_at TIMESTAMPTZ,
    allowed_networks TEXT,
    metadata TEXT,
    created_at TIMESTAMPTZ NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    changed_at_id BIGINT NOT NULL,
    PRIMARY KEY (store_id, api_key_id),
    -- deferred: two keys of one push may trade places
    UNIQUE (store_id, api_key) DEFERRABLE INITIALLY DEFERRED
);
CREATE INDEX api_keys_changed_at ON keystore.api_keys (store_id, changed_at_id);

CREATE TABLE keystore.services (
    store_id UUID NOT NULL,
    service_id BIGINT NOT NULL,
    name TEXT NOT NULL,
    is_active BOOLEAN NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    changed_at_id BIGINT NOT NULL,
    PRIMARY KEY (store_id, service_id)
);
CREATE INDEX services_changed_at ON keystore.services (store_id, changed_at_id);

CREATE TABLE keystore.api_key_statuses (
    store_id UUID NOT NULL,
    status_id BIGINT NOT NULL,
    name TEXT NOT NULL,
    description TEXT,
    is_active BOOLEAN NOT NULL,
    allows_access BOOLEAN NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    changed_at_id BIGINT NOT NULL,
    PRIMARY KEY (store_id, status_id)
);
CREATE INDEX api_key_statuses_changed_at ON keystore.api_key_statuses (store_id, changed_at_id);

CREATE TABLE keystore.api_key_service_quotas (
    store_id UUID NOT NULL,
    quota_id BIGINT NOT NULL,
    api_key_id BIGINT NOT NULL,
    service_id BIGINT NOT NULL,
    initial_quota BIGINT NOT NULL,
    remaining_quota BIGINT NOT NULL,
    renewal TEXT NOT NULL,
    renewed_at TIMESTAMPTZ NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    changed_at_id BIGINT NOT NULL,
    PRIMARY KEY (store_id, quota_id)
);
CREATE INDEX api_key_service_quotas_changed_at
    ON keystore.api_key_service_quotas (store_id, changed_at_id);
CREATE INDEX api_key_service_quotas_key ON keystore.api_key_service_quotas (store_id, api_key_id);

CREATE TABLE keystore.api_key_status_events (
    store_id UUID NOT NULL,
    event_id BIGINT NOT NULL,
    api_key_id BIGINT NOT NULL,
    api_key UUID NOT NULL,
    old_status TEXT,
    status TEXT NOT NULL,
    reason TEXT,
    occurred_at TIMESTAMPTZ NOT NULL,
    changed_at_id BIGINT NOT NULL,
    PRIMARY KEY (store_id, event_id)
);
CREATE INDEX api_key_status_events_changed_at
    ON keystore.api_key_status_events (store_id, changed_at_id);
CREATE INDEX api_key_status_events_key
    ON keystore.api_key_status_events (store_id, api_key, event_id);

CREATE TABLE keystore.oauth_clients (
    store_id UUID NOT NULL,
    oauth_client_id BIGINT NOT NULL,
    client_id TEXT NOT NULL,
    account_id BIGINT NOT NULL,
    client_secret_hash TEXT NOT NULL,
    is_active BOOLEAN NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    changed_at_id BIGINT NOT NULL,
    PRIMARY KEY (store_id, oauth_client_id)
);
CREATE INDEX oauth_clients_changed_at ON keystore.oauth_clients (store_id, changed_at_id);

-- A deleted record, until every replica has seen that it is gone.
CREATE TABLE keystore.tombstones (
    store_id UUID NOT NULL,
    table_name TEXT NOT NULL,
    record_id BIGINT NOT NULL,
    changed_at_id BIGINT NOT NULL,
    deleted_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (store_id, table_name, record_id)
);
CREATE INDEX tombstones_changed_at ON keystore.tombstones (store_id, changed_at_id);

CREATE TABLE keystore.plan_service_quotas (
    store_id UUID NOT NULL,
    plan_quota_id BIGINT NOT NULL,
    plan_id BIGINT NOT NULL,
    service_id BIGINT NOT NULL,
    initial_quota BIGINT NOT NULL,
    renewal TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    changed_at_id BIGINT NOT NULL,
    PRIMARY KEY (store_id, plan_quota_id)
);
CREATE INDEX plan_service_quotas_changed_at ON keystore.plan_service_quotas (store_id, changed_at_id);

CREATE TABLE keystore.providers (
    store_id UUID NOT NULL,
    provider_id BIGINT NOT NULL,
    name TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    changed_at_id BIGINT NOT NULL,
    PRIMARY KEY (store_id, provider_id)
);
CREATE INDEX providers_changed_at ON keystore.providers (store_id, changed_at_id);

CREATE TABLE keystore.models (
    store_id UUID NOT NULL,
    model_id BIGINT NOT NULL,
    provider_id BIGINT NOT NULL,
    name TEXT NOT NULL,
    is_active BOOLEAN NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    changed_at_id BIGINT NOT NULL,
    PRIMARY KEY (store_id, model_id)
);
CREATE INDEX models_changed_at ON keystore.models (store_id, changed_at_id);

CREATE TABLE keystore.model_pricing (
    store_id UUID NOT NULL,
    model_pricing_id BIGINT NOT NULL,
    model_id BIGINT NOT NULL,
    input_nano_per_1k BIGINT NOT NULL,
    output_nano_per_1k BIGINT NOT NULL,
    effective_from TIMESTAMPTZ NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    changed_at_id BIGINT NOT NULL,
    PRIMARY KEY (store_id, model_pricing_id)
);
CREATE INDEX model_pricing_changed_at ON keystore.model_pricing (store_id, changed_at_id);

CREATE TABLE keystore.usage_settlements (
    store_id UUID NOT NULL,
    settlement_id BIGINT NOT NULL,
    replica_id UUID NOT NULL,
    usage_id BIGINT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    changed_at_id BIGINT NOT NULL,
    PRIMARY KEY (store_id, settlement_id)
);
CREATE INDEX usage_settlements_changed_at ON keystore.usage_settlements (store_id, changed_at_id);

-- store_id is the origin that keeps the ledger.
CREATE TABLE keystore.credit_ledger (
    store_id UUID NOT NULL,
    ledger_id BIGINT NOT NULL,
    account_id BIGINT NOT NULL,
    kind TEXT NOT NULL,
    amount_nano BIGINT NOT NULL,
    balance_nano BIGINT NOT NULL,
    request_id TEXT,
    note TEXT,
    model TEXT,
    model_pricing_id BIGINT,
    input_tokens BIGINT,
    output_tokens BIGINT,
    usage_id BIGINT,
    occurred_at TIMESTAMPTZ NOT NULL,
    received_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    nonce BIGINT NOT NULL,
    PRIMARY KEY (store_id, ledger_id, nonce)
);
CREATE INDEX credit_ledger_account ON keystore.credit_ledger (store_id, account_id, ledger_id);

-- store_id is the store that recorded the row, origin_id the one whose principals it names.
-- No foreign keys: the trail outlives what it tells of.
CREATE TABLE keystore.usage_log (
    store_id UUID NOT NULL,
    usage_id BIGINT NOT NULL,
    origin_id UUID NOT NULL,
    principal_type TEXT NOT NULL,
    principal_id BIGINT NOT NULL,
    account_id BIGINT,
    service_id BIGINT,
    amount BIGINT NOT NULL,
    request_id TEXT,
    occurred_at TIMESTAMPTZ NOT NULL,
    received_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    -- of two copies of one file, each goes on counting from the same usage_id
    nonce BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (store_id, usage_id, nonce)
);
CREATE INDEX usage_log_principal
    ON keystore.usage_log (origin_id, principal_type, principal_id, occurred_at);
-- what a replica's store has used, for the origin to settle
CREATE INDEX usage_log_consumed ON keystore.usage_log (origin_id, store_id, usage_id)
    WHERE principal_type = 'api_key' AND service_id IS NOT NULL;

-- Row-level security: acts on every role but the owner. The sub-selects see the role's own grants.

-- Asked when a role claims a store: it must not be an origin, or whoever claims it could write usage in
-- its name. (With the owner's rights, because a role sees only its own grants.)
CREATE FUNCTION keystore.is_origin(id UUID) RETURNS BOOLEAN
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
RETURN EXISTS (SELECT FROM keystore.stores AS s WHERE s.store_id = id)
    OR EXISTS (SELECT FROM keystore.grants AS g
               WHERE g.store_id = id AND g.access IN ('push', 'pull'));

ALTER TABLE keystore.grants ENABLE ROW LEVEL SECURITY;
CREATE POLICY see_own ON keystore.grants FOR SELECT USING (role_name = current_user);
CREATE POLICY claim ON keystore.grants FOR INSERT
    WITH CHECK (role_name = current_user AND access = 'own' AND NOT keystore.is_origin(store_id));

ALTER TABLE keystore.stores ENABLE ROW LEVEL SECURITY;
CREATE POLICY push ON keystore.stores USING (store_id IN (
    SELECT g.store_id FROM keystore.grants AS g
    WHERE g.role_name = current_user AND g.access = 'push'));
CREATE POLICY pull ON keystore.stores FOR SELECT USING (store_id IN (
    SELECT g.store_id FROM keystore.grants AS g
    WHERE g.role_name = current_user AND g.access = 'pull'));

ALTER TABLE keystore.replicas ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON keystore.replicas USING (
    store_id IN (SELECT g.store_id FROM keystore.grants AS g
                 WHERE g.role_name = current_user AND g.access = 'own')
    AND origin_id IN (SELECT g.store_id FROM keystore.grants AS g
                      WHERE g.role_name = current_user AND g.access = 'pull'));

ALTER TABLE keystore.revocations ENABLE ROW LEVEL SECURITY;
CREATE POLICY see ON keystore.revocations FOR SELECT USING (store_id IN (
    SELECT g.store_id FROM keystore.grants AS g
    WHERE g.role_name = current_user AND g.access IN ('push', 'pull')));

ALTER TABLE keystore.revocation_heads ENABLE ROW LEVEL SECURITY;

ALTER TABLE keystore.usage_log ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON keystore.usage_log USING (
    store_id IN (SELECT g.store_id FROM keystore.grants AS g
                 WHERE g.role_name = current_user AND g.access IN ('push', 'own'))
    AND origin_id IN (SELECT g.store_id FROM keystore.grants AS g
                      WHERE g.role_name = current_user AND g.access IN ('push', 'pull')));

-- An origin learns what its keys have used, wherever that was.
CREATE POLICY consumed ON keystore.usage_log FOR SELECT USING (origin_id IN (
    SELECT g.store_id FROM keystore.grants AS g
    WHERE g.role_name = current_user AND g.access = 'push'));

ALTER TABLE keystore.plans ENABLE ROW LEVEL SECURITY;
CREATE POLICY push ON keystore.plans USING (store_id IN (
    SELECT g.store_id FROM keystore.grants AS g
    WHERE g.role_name = current_user AND g.access = 'push'));
CREATE POLICY pull ON keystore.plans FOR SELECT USING (store_id IN (
    SELECT g.store_id FROM keystore.grants AS g
    WHERE g.role_name = current_user AND g.access = 'pull'));

ALTER TABLE keystore.accounts ENABLE ROW LEVEL SECURITY;
CREATE POLICY push ON keystore.accounts USING (store_id IN (
    SELECT g.store_id FROM keystore.grants AS g
    WHERE g.role_name = current_user AND g.access = 'push'));
CREATE POLICY pull ON keystore.accounts FOR SELECT USING (store_id IN (
    SELECT g.store_id FROM keystore.grants AS g
    WHERE g.role_name = current_user AND g.access = 'pull'));

ALTER TABLE keystore.services ENABLE ROW LEVEL SECURITY;
CREATE POLICY push ON keystore.services USING (store_id IN (
    SELECT g.store_id FROM keystore.grants AS g
    WHERE g.role_name = current_user AND g.access = 'push'));
CREATE POLICY pull ON keystore.services FOR SELECT USING (store_id IN (
    SELECT g.store_id FROM keystore.grants AS g
    WHERE g.role_name = current_user AND g.access = 'pull'));

ALTER TABLE keystore.api_key_statuses ENABLE ROW LEVEL SECURITY;
CREATE POLICY push ON keystore.api_key_statuses USING (store_id IN (
    SELECT g.store_id FROM keystore.grants AS g
    WHERE g.role_name = current_user AND g.access = 'push'));
CREATE POLICY pull ON keystore.api_key_statuses FOR SELECT USING (store_id IN (
    SELECT g.store_id FROM keystore.grants AS g
    WHERE g.role_name = current_user AND g.access = 'pull'));

ALTER TABLE keystore.api_keys ENABLE ROW LEVEL SECURITY;
CREATE POLICY push ON keystore.api_keys USING (store_id IN (
    SELECT g.store_id FROM keystore.grants AS g
    WHERE g.role_name = current_user AND g.access = 'push'));
CREATE POLICY pull ON keystore.api_keys FOR SELECT USING (store_id IN (
    SELECT g.store_id FROM keystore.grants AS g
    WHERE g.role_name = current_user AND g.access = 'pull'));

ALTER TABLE keystore.api_key_service_quotas ENABLE ROW LEVEL SECURITY;
CREATE POLICY push ON keystore.api_key_service_quotas USING (store_id IN (
    SELECT g.store_id FROM keystore.grants AS g
    WHERE g.role_name = current_user AND g.access = 'push'));
CREATE POLICY pull ON keystore.api_key_service_quotas FOR SELECT USING (store_id IN (
    SELECT g.store_id FROM keystore.grants AS g
    WHERE g.role_name = current_user AND g.access = 'pull'));

ALTER TABLE keystore.api_key_status_events ENABLE ROW LEVEL SECURITY;
CREATE POLICY push ON keystore.api_key_status_events USING (store_id IN (
    SELECT g.store_id FROM keystore.grants AS g
    WHERE g.role_name = current_user AND g.access = 'push'));
CREATE POLICY pull ON keystore.api_key_status_events FOR SELECT USING (store_id IN (
    SELECT g.store_id FROM keystore.grants AS g
    WHERE g.role_name = current_user AND g.access = 'pull'));

ALTER TABLE keystore.oauth_clients ENABLE ROW LEVEL SECURITY;
CREATE POLICY push ON keystore.oauth_clients USING (store_id IN (
    SELECT g.store_id FROM keystore.grants AS g
    WHERE g.role_name = current_user AND g.access = 'push'));
CREATE POLICY pull ON keystore.oauth_clients FOR SELECT USING (store_id IN (
    SELECT g.store_id FROM keystore.grants AS g
    WHERE g.role_name = current_user AND g.access = 'pull'));

ALTER TABLE keystore.plan_service_quotas ENABLE ROW LEVEL SECURITY;
CREATE POLICY push ON keystore.plan_service_quotas USING (store_id IN (
    SELECT g.store_id FROM keystore.grants AS g
    WHERE g.role_name = current_user AND g.access = 'push'));
CREATE POLICY pull ON keystore.plan_service_quotas FOR SELECT USING (store_id IN (
    SELECT g.store_id FROM keystore.grants AS g
    WHERE g.role_name = current_user AND g.access = 'pull'));

ALTER TABLE keystore.providers ENABLE ROW LEVEL SECURITY;
CREATE POLICY push ON keystore.providers USING (store_id IN (
    SELECT g.store_id FROM keystore.grants AS g
    WHERE g.role_name = current_user AND g.access = 'push'));
CREATE POLICY pull ON keystore.providers FOR SELECT USING (store_id IN (
    SELECT g.store_id FROM keystore.grants AS g
    WHERE g.role_name = current_user AND g.access = 'pull'));

ALTER TABLE keystore.models ENABLE ROW LEVEL SECURITY;
CREATE POLICY push ON keystore.models USING (store_id IN (
    SELECT g.store_id FROM keystore.grants AS g
    WHERE g.role_name = current_user AND g.access = 'push'));
CREATE POLICY pull ON keystore.models FOR SELECT USING (store_id IN (
    SELECT g.store_id FROM keystore.grants AS g
    WHERE g.role_name = current_user AND g.access = 'pull'));

ALTER TABLE keystore.model_pricing ENABLE ROW LEVEL SECURITY;
CREATE POLICY push ON keystore.model_pricing USING (store_id IN (
    SELECT g.store_id FROM keystore.grants AS g
    WHERE g.role_name = current_user AND g.access = 'push'));
CREATE POLICY pull ON keystore.model_pricing FOR SELECT USING (store_id IN (
    SELECT g.store_id FROM keystore.grants AS g
    WHERE g.role_name = current_user AND g.access = 'pull'));

ALTER TABLE keystore.usage_settlements ENABLE ROW LEVEL SECURITY;
CREATE POLICY push ON keystore.usage_settlements USING (store_id IN (
    SELECT g.store_id FROM keystore.grants AS g
    WHERE g.role_name = current_user AND g.access = 'push'));
CREATE POLICY pull ON keystore.usage_settlements FOR SELECT USING (store_id IN (
    SELECT g.store_id FROM keystore.grants AS g
    WHERE g.role_name = current_user AND g.access = 'pull'));

ALTER TABLE keystore.credit_ledger ENABLE ROW LEVEL SECURITY;
CREATE POLICY push ON keystore.credit_ledger USING (store_id IN (
    SELECT g.store_id FROM keystore.grants AS g
    WHERE g.role_name = current_user AND g.access = 'push'));

ALTER TABLE keystore.tombstones ENABLE ROW LEVEL SECURITY;
CREATE POLICY push ON keystore.tombstones USING (store_id IN (
    SELECT g.store_id FROM keystore.grants AS g
    WHERE g.role_name = current_user AND g.access = 'push'));
CREATE POLICY pull ON keystore.tombstones FOR SELECT USING (store_id IN (
    SELECT g.store_id FROM keystore.grants AS g
    WHERE g.role_name = current_user AND g.access = 'pull'));

-- Whatever ALTER DEFAULT PRIVILEGES of this database gives to everybody, and EXECUTE, which
-- PostgreSQL itself gives.
REVOKE ALL ON SCHEMA keystore FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA keystore FROM PUBLIC;
REVOKE ALL ON ALL ROUTINES IN SCHEMA keystore FROM PUBLIC;

INSERT INTO keystore.hub_info (hub_info_id, hub_id, schema_version)
VALUES (1, gen_random_uuid(), 5);
