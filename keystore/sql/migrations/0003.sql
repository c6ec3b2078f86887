-- Version 2 to 3: a horizon for the ChangeLog, a nonce for each usage row, revocations from a hub.
-- Rebuilt and not altered, so that a migrated file equals a fresh one to the letter; see 0002.sql.

ALTER TABLE StoreInfo RENAME TO StoreInfoOfVersion2;

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

INSERT INTO StoreInfo (store_info_id, store_id, role, incarnation, origin_id, token_prefix,
                       as_of_change, as_of_at, replaying, created_at)
SELECT store_info_id, store_id, role, incarnation, origin_id, token_prefix, as_of_change, as_of_at,
       replaying, created_at
FROM StoreInfoOfVersion2;

DROP TABLE StoreInfoOfVersion2;

ALTER TABLE UsageLog RENAME TO UsageLogOfVersion2;

CREATE TABLE UsageLog (
    usage_id INTEGER PRIMARY KEY AUTOINCREMENT CHECK (usage_id > 0),
    principal_type TEXT NOT NULL CHECK (principal_type IN ('api_key', 'oauth_client', 'session')),
    principal_id INTEGER NOT NULL CHECK (typeof(principal_id) = 'integer'),
    account_id INTEGER CHECK (typeof(account_id) IN ('integer', 'null')),
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

-- (0: what a hub of version 2 has no nonce of gets the same)
INSERT INTO UsageLog (usage_id, principal_type, principal_id, account_id, amount, request_id,
                      occurred_at, nonce)
SELECT usage_id, principal_type, principal_id, account_id, amount, request_id, occurred_at, 0
FROM UsageLogOfVersion2;

DELETE FROM sqlite_sequence WHERE name = 'UsageLog';
INSERT INTO sqlite_sequence (name, seq)
SELECT 'UsageLog', seq FROM sqlite_sequence WHERE name = 'UsageLogOfVersion2';

DROP TABLE UsageLogOfVersion2;

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

ALTER TABLE SyncTargets RENAME TO SyncTargetsOfVersion2;

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

INSERT INTO SyncTargets (sync_target_id, target_id, url, acknowledged_change, push_token,
                         pending_token, acknowledged_usage, source_state, usage_only, synced_at)
SELECT sync_target_id, target_id, url, acknowledged_change, push_token, pending_token,
       acknowledged_usage, source_state, usage_only, synced_at
FROM SyncTargetsOfVersion2;

DELETE FROM sqlite_sequence WHERE name = 'SyncTargets';
INSERT INTO sqlite_sequence (name, seq)
SELECT 'SyncTargets', seq FROM sqlite_sequence WHERE name = 'SyncTargetsOfVersion2';

DROP TABLE SyncTargetsOfVersion2;
