-- Version 4 to 5: quotas that are spent, credits, and usage by service.

ALTER TABLE keystore.api_key_service_quotas ADD COLUMN renewed_at TIMESTAMPTZ;
UPDATE keystore.api_key_service_quotas SET renewed_at = updated_at;
ALTER TABLE keystore.api_key_service_quotas ALTER COLUMN renewed_at SET NOT NULL;
ALTER TABLE keystore.usage_log ADD COLUMN service_id BIGINT;
-- what a replica's store has used, for the origin to settle
CREATE INDEX usage_log_consumed ON keystore.usage_log (origin_id, store_id, usage_id)
    WHERE principal_type = 'api_key' AND service_id IS NOT NULL;

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

-- An origin learns what its keys have used, wherever that was.
CREATE POLICY consumed ON keystore.usage_log FOR SELECT USING (origin_id IN (
    SELECT g.store_id FROM keystore.grants AS g
    WHERE g.role_name = current_user AND g.access = 'push'));

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

REVOKE ALL ON ALL TABLES IN SCHEMA keystore FROM PUBLIC;

UPDATE keystore.hub_info SET schema_version = 5;
