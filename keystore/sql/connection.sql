-- What every connection of ours has; these belong to the connection, not to the file.
PRAGMA foreign_keys = ON; -- off is the default of every other client; `doctor` finds what they left
PRAGMA recursive_triggers = OFF;
PRAGMA synchronous = FULL; -- a commit that was answered survives a power cut
-- These two keep the statement journal of the triggers in memory: spilled to disk it more than
-- doubles the cost of a tracked insert.
PRAGMA temp_store = MEMORY;
PRAGMA cache_size = -65536;
