-- Version 2 to 3: the fleet, revocations, who may do what, and a nonce for each usage row.

ALTER TABLE keystore.stores
    ADD COLUMN record_counts JSONB,
    ADD COLUMN tombstone_horizon BIGINT NOT NULL DEFAULT 0,
    ADD COLUMN seen_revocation BIGINT NOT NULL DEFAULT 0,
    ADD COLUMN program_version TEXT NOT NULL DEFAULT '';

ALTER TABLE keystore.usage_log ADD COLUMN nonce BIGINT NOT NULL DEFAULT 0;
ALTER TABLE keystore.usage_log DROP CONSTRAINT usage_log_pkey;
ALTER TABLE keystore.usage_log ADD PRIMARY KEY (store_id, usage_id, nonce);

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

-- Row-level security: acts on every role but the owner. The sub-selects see the role's own grants.

ALTER TABLE keystore.grants ENABLE ROW LEVEL SECURITY;
CREATE POLICY see_own ON keystore.grants FOR SELECT USING (role_name = current_user);
CREATE POLICY claim ON keystore.grants FOR INSERT
    WITH CHECK (role_name = current_user AND access = 'own');

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

ALTER TABLE keystore.tombstones ENABLE ROW LEVEL SECURITY;
CREATE POLICY push ON keystore.tombstones USING (store_id IN (
    SELECT g.store_id FROM keystore.grants AS g
    WHERE g.role_name = current_user AND g.access = 'push'));
CREATE POLICY pull ON keystore.tombstones FOR SELECT USING (store_id IN (
    SELECT g.store_id FROM keystore.grants AS g
    WHERE g.role_name = current_user AND g.access = 'pull'));

UPDATE keystore.hub_info SET schema_version = 3;
