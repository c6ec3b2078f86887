-- The hub: a schema in a central PostgreSQL (15 or newer). Version 1.
--
-- Rows are keyed by (store_id, <internal id of that store>), so that many origins share a hub and
-- no identity has to be made up. No foreign keys between mirrored tables: the hub holds what the
-- origin holds, and an origin may hold orphans that some client left there; a constraint here
-- would turn one bad row into a push that never ends.

CREATE SCHEMA keystore;

CREATE TABLE keystore.hub_info (
    hub_info_id SMALLINT PRIMARY KEY CHECK (hub_info_id = 1),
    hub_id UUID NOT NULL,
    schema_version INTEGER NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);

-- One row, locked by every push from its stamping to its commit: the order of hub_seq is the order
-- of commits. (With a plain sequence a reader skips what commits late, for ever.)
CREATE TABLE keystore.hub_clock (
    hub_clock_id SMALLINT PRIMARY KEY CHECK (hub_clock_id = 1),
    hub_seq BIGINT NOT NULL
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
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    last_seen_at TIMESTAMPTZ NOT NULL DEFAULT now()
);

CREATE TABLE keystore.plans (
    store_id UUID NOT NULL,
    plan_id BIGINT NOT NULL,
    name TEXT NOT NULL,
    max_staleness_seconds BIGINT,
    stale_action TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    hub_seq BIGINT NOT NULL,
    PRIMARY KEY (store_id, plan_id)
);
CREATE INDEX plans_hub_seq ON keystore.plans (store_id, hub_seq);

CREATE TABLE keystore.accounts (
    store_id UUID NOT NULL,
    account_id BIGINT NOT NULL,
    email TEXT NOT NULL,
    plan_id BIGINT NOT NULL,
    is_active BOOLEAN NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    hub_seq BIGINT NOT NULL,
    PRIMARY KEY (store_id, account_id)
);
CREATE INDEX accounts_hub_seq ON keystore.accounts (store_id, hub_seq);

CREATE TABLE keystore.api_keys (
    store_id UUID NOT NULL,
    api_key_id BIGINT NOT NULL,
    api_key UUID NOT NULL,
    account_id BIGINT NOT NULL,
    api_key_hash TEXT NOT NULL,
    is_active BOOLEAN NOT NULL,
    label TEXT,
    expires_at TIMESTAMPTZ,
    created_at TIMESTAMPTZ NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    hub_seq BIGINT NOT NULL,
    PRIMARY KEY (store_id, api_key_id),
    -- deferred: two keys of one push may trade places
    UNIQUE (store_id, api_key) DEFERRABLE INITIALLY DEFERRED
);
CREATE INDEX api_keys_hub_seq ON keystore.api_keys (store_id, hub_seq);

-- A deleted record, until every replica has seen that it is gone.
CREATE TABLE keystore.tombstones (
    store_id UUID NOT NULL,
    table_name TEXT NOT NULL,
    record_id BIGINT NOT NULL,
    hub_seq BIGINT NOT NULL,
    deleted_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (store_id, table_name, record_id)
);
CREATE INDEX tombstones_hub_seq ON keystore.tombstones (store_id, hub_seq);

-- store_id is the store that recorded the row, origin_id the one whose principals it names.
-- No foreign keys: the trail outlives what it tells of.
CREATE TABLE keystore.usage_log (
    store_id UUID NOT NULL,
    usage_id BIGINT NOT NULL,
    origin_id UUID NOT NULL,
    principal_type TEXT NOT NULL,
    principal_id BIGINT NOT NULL,
    account_id BIGINT,
    amount BIGINT NOT NULL,
    request_id TEXT,
    occurred_at TIMESTAMPTZ NOT NULL,
    received_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    PRIMARY KEY (store_id, usage_id)
);
CREATE INDEX usage_log_principal
    ON keystore.usage_log (origin_id, principal_type, principal_id, occurred_at);

INSERT INTO keystore.hub_info (hub_info_id, hub_id, schema_version)
VALUES (1, gen_random_uuid(), 1);
INSERT INTO keystore.hub_clock (hub_clock_id, hub_seq) VALUES (1, 0);
