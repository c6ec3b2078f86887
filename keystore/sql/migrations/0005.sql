-- Version 4 to 5: plans get a rate. Rebuilt and not altered; see 0002.sql.

ALTER TABLE Plans RENAME TO PlansOfVersion4;

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

INSERT INTO Plans (plan_id, name, max_staleness_seconds, stale_action, created_at, updated_at)
SELECT plan_id, name, max_staleness_seconds, stale_action, created_at, updated_at
FROM PlansOfVersion4;

DELETE FROM sqlite_sequence WHERE name = 'Plans';
INSERT INTO sqlite_sequence (name, seq)
SELECT 'Plans', seq FROM sqlite_sequence WHERE name = 'PlansOfVersion4';

DROP TABLE PlansOfVersion4;
