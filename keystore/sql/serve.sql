-- What a server asks of its store beside the checks.

-- name: strictest_bound
-- The least age of the data at which a plan denies.
SELECT min(max_staleness_seconds) FROM Plans WHERE stale_action <> 'allow';

-- name: usage_waiting
-- Rows that the target which has most of them has not acknowledged.
SELECT (SELECT coalesce(max(usage_id), 0) FROM UsageLog)
       - (SELECT coalesce(max(acknowledged_usage), 0) FROM SyncTargets);
