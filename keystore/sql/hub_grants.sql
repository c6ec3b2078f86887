-- What gives a role its rights at a hub, and takes them away.
-- {role} is the role's name as an identifier, {name} as a literal, {store_id} the origin as a literal,
-- {tables} the tracked tables, {body} another statement as a literal.

-- name: run_body
DO {body};

-- name: make_role
-- (a superuser, a member of the hub's owner, and who has BYPASSRLS may do everything anyway)
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = {name}) THEN
        CREATE ROLE {role} LOGIN;
    END IF;
    IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = {name} AND rolbypassrls)
        OR pg_catalog.pg_has_role({name}::NAME, (
            SELECT relowner FROM pg_catalog.pg_class WHERE oid = 'keystore.grants'::regclass
        ), 'MEMBER')
    THEN
        RAISE EXCEPTION 'row-level security does not bind the role %', {name};
    END IF;
    EXECUTE pg_catalog.format('GRANT CONNECT, TEMPORARY ON DATABASE %I TO %I',
                              pg_catalog.current_database(), {name});
END

-- name: grant_push
GRANT USAGE ON SCHEMA keystore TO {role};
GRANT SELECT ON keystore.hub_info, keystore.grants, keystore.stores, keystore.revocations TO {role};
GRANT INSERT (store_id, incarnation, token_prefix, schema_version, program_version,
              acknowledged_change),
      UPDATE (incarnation, token_prefix, schema_version, program_version, acknowledged_change,
              push_token, record_counts, tombstone_horizon, as_of_at, seen_revocation,
              last_seen_at)
    ON keystore.stores TO {role};
GRANT SELECT, INSERT, UPDATE, DELETE ON keystore.tombstones, {tables} TO {role};
GRANT SELECT,
      INSERT (store_id, origin_id, usage_id, principal_type, principal_id, account_id, service_id,
              amount, request_id, occurred_at, nonce)
    ON keystore.usage_log TO {role};
GRANT SELECT,
      INSERT (store_id, ledger_id, account_id, kind, amount_nano, balance_nano, request_id, note, model,
              model_pricing_id, input_tokens, output_tokens, usage_id, occurred_at, nonce)
    ON keystore.credit_ledger TO {role};
-- An origin's id is no replica's.
DELETE FROM keystore.grants WHERE store_id = {store_id} AND access = 'own';
INSERT INTO keystore.grants (store_id, role_name, access) VALUES ({store_id}, {name}, 'push')
ON CONFLICT DO NOTHING;

-- name: grant_pull
-- All of stores but the token of the last push.
GRANT USAGE ON SCHEMA keystore TO {role};
GRANT SELECT ON keystore.hub_info, keystore.revocations, keystore.tombstones, {tables} TO {role};
GRANT SELECT (store_id, incarnation, token_prefix, schema_version, program_version,
              acknowledged_change, as_of_at, record_counts, tombstone_horizon, created_at,
              last_seen_at)
    ON keystore.stores TO {role};
GRANT SELECT,
      INSERT (store_id, origin_id, usage_id, principal_type, principal_id, account_id, service_id,
              amount, request_id, occurred_at, nonce)
    ON keystore.usage_log TO {role};
GRANT SELECT,
      INSERT (store_id, incarnation, origin_id, token, schema_version, program_version,
              as_of_change, as_of_at, seen_revocation),
      UPDATE (origin_id, token, schema_version, program_version, as_of_change, as_of_at,
              seen_revocation, last_seen_at)
    ON keystore.replicas TO {role};
GRANT SELECT, INSERT (store_id, role_name, access) ON keystore.grants TO {role};
GRANT EXECUTE ON FUNCTION keystore.is_origin(UUID) TO {role};
-- An origin's id is no replica's.
DELETE FROM keystore.grants WHERE store_id = {store_id} AND access = 'own';
INSERT INTO keystore.grants (store_id, role_name, access) VALUES ({store_id}, {name}, 'pull')
ON CONFLICT DO NOTHING;

-- name: has_role
SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = %s);

-- name: granted_roles
-- (a role that was dropped, and made anew by somebody, has no right in the schema, and gets none)
SELECT g.role_name, g.access, g.store_id::TEXT
FROM keystore.grants AS g JOIN pg_catalog.pg_roles AS r ON r.rolname = g.role_name
WHERE g.access IN ('push', 'pull') AND pg_catalog.has_schema_privilege(r.oid, 'keystore', 'USAGE')
ORDER BY 1, 2, 3;

-- name: forget_grants
DELETE FROM keystore.grants WHERE role_name = %s RETURNING store_id;

-- name: revoke_rights
BEGIN
    REVOKE ALL ON ALL TABLES IN SCHEMA keystore FROM {role};
    REVOKE ALL ON ALL ROUTINES IN SCHEMA keystore FROM {role};
    REVOKE ALL ON SCHEMA keystore FROM {role};
    EXECUTE pg_catalog.format('REVOKE CONNECT, TEMPORARY ON DATABASE %I FROM %I',
                              pg_catalog.current_database(), {name});
END
