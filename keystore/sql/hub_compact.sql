-- What `keystore hub compact` does, one origin at a time.

-- name: stores
SELECT store_id::TEXT FROM keystore.stores ORDER BY created_at, store_id;

-- name: lock
-- (as a push does; and like it before the tombstones, or the two could wait for each other)
SELECT acknowledged_change, tombstone_horizon
FROM keystore.stores
WHERE store_id = %(store_id)s
FOR UPDATE;

-- name: hold
-- The earliest change that a live replica has, and who is there; none if all are up to date.
-- clock_timestamp, because we may have waited for a push. Who called later than now is not counted, or
-- a wrong clock would hold for ever; nor who is behind the horizon already: he gets everything.
WITH live AS (
    SELECT store_id, as_of_change FROM keystore.replicas
    WHERE origin_id = %(store_id)s
      AND as_of_change >= %(horizon)s AND as_of_change < %(acknowledged)s
      AND last_seen_at BETWEEN
          clock_timestamp() - make_interval(secs => %(lease)s::DOUBLE PRECISION)
          AND clock_timestamp()
)
SELECT as_of_change, array_agg(DISTINCT store_id::TEXT) FROM live
GROUP BY as_of_change
ORDER BY as_of_change
LIMIT 1;

-- name: forget
-- The highest id of each table stays: it says which ids have been given away, should an older copy
-- of the origin have to go on (`keystore sync --reconcile`).
DELETE FROM keystore.tombstones AS t
WHERE t.store_id = %(store_id)s AND t.changed_at_id <= %(horizon)s
  AND t.record_id < (SELECT max(m.record_id) FROM keystore.tombstones AS m
                     WHERE m.store_id = %(store_id)s AND m.table_name = t.table_name);

-- name: kept
SELECT count(*) FROM keystore.tombstones WHERE store_id = %(store_id)s;

-- name: set_horizon
UPDATE keystore.stores SET tombstone_horizon = %(horizon)s WHERE store_id = %(store_id)s;
