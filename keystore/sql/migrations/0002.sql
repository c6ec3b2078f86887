-- Version 1 to 2: services, statuses, quotas, the status timeline and OAuth clients; keys get a status
-- that agrees with is_active, networks and metadata. Triggers are made anew afterwards.

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

INSERT INTO APIKeyStatuses (name, description, allows_access) VALUES
    ('assigned', 'in use by its account', 1),
    ('unassigned', 'made, but not yet given to its account', 0),
    ('exhausted', 'all quotas of the key are used up', 0),
    ('suspended', 'stopped for a while', 0),
    ('revoked', 'stopped for good', 0);

-- Rebuilt and not altered, so that a migrated file equals a fresh one to the letter. Renaming the old
-- table out of the way (with legacy_alter_table) leaves what refers to it as it is; the sequence goes
-- along, or ids would be used again.
ALTER TABLE APIKeys RENAME TO APIKeysOfVersion1;
DROP INDEX idx_apikeys_account_id;

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

INSERT INTO APIKeys (api_key_id, api_key, account_id, api_key_hash, is_active, status, label,
                     expires_at, created_at, updated_at)
SELECT api_key_id, api_key, account_id, api_key_hash, is_active,
       CASE WHEN is_active THEN 'assigned' ELSE 'revoked' END, label, expires_at, created_at,
       updated_at
FROM APIKeysOfVersion1;

UPDATE sqlite_sequence
SET seq = (SELECT seq FROM sqlite_sequence WHERE name = 'APIKeysOfVersion1')
WHERE name = 'APIKeys';
INSERT INTO sqlite_sequence (name, seq)
SELECT 'APIKeys', seq FROM sqlite_sequence
WHERE name = 'APIKeysOfVersion1'
  AND NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'APIKeys');

DROP TABLE APIKeysOfVersion1;

CREATE TABLE APIKeyServiceQuotas (
    quota_id INTEGER PRIMARY KEY AUTOINCREMENT CHECK (quota_id > 0),
    api_key_id INTEGER NOT NULL REFERENCES APIKeys (api_key_id) ON DELETE CASCADE
        CHECK (typeof(api_key_id) = 'integer'),
    service_id INTEGER NOT NULL REFERENCES Services (service_id) ON DELETE CASCADE
        CHECK (typeof(service_id) = 'integer'),
    initial_quota INTEGER NOT NULL CHECK (typeof(initial_quota) = 'integer' AND initial_quota >= 0),
    remaining_quota INTEGER NOT NULL
        CHECK (typeof(remaining_quota) = 'integer' AND remaining_quota >= 0),
    renewal TEXT NOT NULL DEFAULT 'never' CHECK (renewal IN ('never', 'daily', 'monthly')),
    created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
        CHECK (created_at IS datetime(strftime('%s', created_at), 'unixepoch') AND created_at GLOB '[12]???-*'),
    updated_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
        CHECK (updated_at IS datetime(strftime('%s', updated_at), 'unixepoch') AND updated_at GLOB '[12]???-*'),
    UNIQUE (api_key_id, service_id)
);
CREATE INDEX idx_apikeyservicequotas_service_id ON APIKeyServiceQuotas (service_id);

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
