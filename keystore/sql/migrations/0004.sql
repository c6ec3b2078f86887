-- Version 3 to 4: how long files may be used without contact, a mark of the clock, usage in signed files.
-- Rebuilt and not altered, so that a migrated file equals a fresh one to the letter; see 0002.sql.

ALTER TABLE StoreInfo RENAME TO StoreInfoOfVersion3;

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

INSERT INTO StoreInfo (store_info_id, store_id, role, incarnation, origin_id, token_prefix,
                       as_of_change, as_of_at, origin_incarnation, replaying, log_horizon,
                       compacted_to, created_at)
SELECT store_info_id, store_id, role, incarnation, origin_id, token_prefix, as_of_change, as_of_at,
       origin_incarnation, replaying, log_horizon, compacted_to, created_at
FROM StoreInfoOfVersion3;

DROP TABLE StoreInfoOfVersion3;

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

CREATE TABLE ReceivedUsage (
    store_id CHAR(36) NOT NULL,
    usage_id INTEGER NOT NULL CHECK (usage_id > 0),
    nonce INTEGER NOT NULL CHECK (typeof(nonce) = 'integer'),
    principal_type TEXT NOT NULL CHECK (principal_type IN ('api_key', 'oauth_client', 'session')),
    principal_id INTEGER NOT NULL CHECK (typeof(principal_id) = 'integer'),
    account_id INTEGER CHECK (typeof(account_id) IN ('integer', 'null')),
    amount INTEGER NOT NULL CHECK (typeof(amount) = 'integer' AND amount >= 0),
    request_id TEXT
        CHECK (request_id IS NULL
               OR (typeof(request_id) = 'text' AND instr(request_id, char(0)) = 0)),
    occurred_at TIMESTAMP NOT NULL
        CHECK (occurred_at IS datetime(strftime('%s', occurred_at), 'unixepoch') AND occurred_at GLOB '[12]???-*'),
    received_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
    PRIMARY KEY (store_id, usage_id, nonce)
) WITHOUT ROWID;
