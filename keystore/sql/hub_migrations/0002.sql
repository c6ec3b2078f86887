-- Version 1 to 2; see migrations/0002.sql. Column order does not matter to the statements, so columns
-- are added at the end; the defaults hold until each origin's next push brings its own.

ALTER TABLE keystore.api_keys
    ADD COLUMN status TEXT NOT NULL DEFAULT 'assigned',
    ADD COLUMN status_reason TEXT,
    ADD COLUMN allowed_networks TEXT,
    ADD COLUMN metadata TEXT;
UPDATE keystore.api_keys SET status = 'revoked' WHERE NOT is_active;
ALTER TABLE keystore.api_keys ALTER COLUMN status DROP DEFAULT;

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

UPDATE keystore.hub_info SET schema_version = 2;
