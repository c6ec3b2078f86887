-- Change tracking: after any write by any SQLite client, the ChangeLog names every record that may
-- differ. Replay reads the record as it is then, so a row too many is harmless; a row too few is
-- the only sin. Per table:
--
--   *_insert, *_update, *_delete   log what was asked for.
--   *_insert_replaced, *_update_replaced
--       log the rows that an OR REPLACE is about to remove. SQLite fires no DELETE trigger for
--       them unless the *writer* has recursive_triggers on, so they are looked up beforehand, by
--       each UNIQUE column. (An upsert passes here too and logs a row too many.)
--   *_identity
--       refuse a new id or UUID. Not "UPDATE OF plan_id": SET rowid = 5 changes the id as well and
--       would slip past a list of column names. (The others may list theirs: a column that is no
--       rowid cannot change without being named, and an update of anything else is spared the cost.)
--
-- No pragma_…() table in here: with trusted_schema off it raises "unsafe use of virtual table".

CREATE TRIGGER trg_plans_insert AFTER INSERT ON Plans BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    VALUES ('Plans', NEW.plan_id, 'INSERT');
END;

CREATE TRIGGER trg_plans_update AFTER UPDATE ON Plans BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    VALUES ('Plans', NEW.plan_id, 'UPDATE');
END;

CREATE TRIGGER trg_plans_delete AFTER DELETE ON Plans BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    VALUES ('Plans', OLD.plan_id, 'DELETE');
END;

CREATE TRIGGER trg_plans_insert_replaced BEFORE INSERT ON Plans BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    SELECT 'Plans', plan_id, 'DELETE' FROM Plans
    WHERE plan_id = NEW.plan_id OR name = NEW.name;
END;

CREATE TRIGGER trg_plans_update_replaced BEFORE UPDATE OF name ON Plans
WHEN NEW.name IS NOT OLD.name BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    SELECT 'Plans', plan_id, 'DELETE' FROM Plans
    WHERE name = NEW.name AND plan_id <> OLD.plan_id;
END;

CREATE TRIGGER trg_plans_identity BEFORE UPDATE ON Plans
WHEN NEW.plan_id IS NOT OLD.plan_id BEGIN
    SELECT RAISE(ABORT, 'Plans.plan_id never changes: delete the row and insert a new one');
END;

CREATE TRIGGER trg_accounts_insert AFTER INSERT ON Accounts BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    VALUES ('Accounts', NEW.account_id, 'INSERT');
END;

CREATE TRIGGER trg_accounts_update AFTER UPDATE ON Accounts BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    VALUES ('Accounts', NEW.account_id, 'UPDATE');
END;

CREATE TRIGGER trg_accounts_delete AFTER DELETE ON Accounts BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    VALUES ('Accounts', OLD.account_id, 'DELETE');
END;

CREATE TRIGGER trg_accounts_insert_replaced BEFORE INSERT ON Accounts BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    SELECT 'Accounts', account_id, 'DELETE' FROM Accounts
    WHERE account_id = NEW.account_id OR email = NEW.email;
END;

CREATE TRIGGER trg_accounts_update_replaced BEFORE UPDATE OF email ON Accounts
WHEN NEW.email IS NOT OLD.email BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    SELECT 'Accounts', account_id, 'DELETE' FROM Accounts
    WHERE email = NEW.email AND account_id <> OLD.account_id;
END;

CREATE TRIGGER trg_accounts_identity BEFORE UPDATE ON Accounts
WHEN NEW.account_id IS NOT OLD.account_id BEGIN
    SELECT RAISE(ABORT, 'Accounts.account_id never changes: delete the row and insert a new one');
END;

CREATE TRIGGER trg_apikeys_insert AFTER INSERT ON APIKeys BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    VALUES ('APIKeys', NEW.api_key_id, 'INSERT');
END;

CREATE TRIGGER trg_apikeys_update AFTER UPDATE ON APIKeys BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    VALUES ('APIKeys', NEW.api_key_id, 'UPDATE');
END;

CREATE TRIGGER trg_apikeys_delete AFTER DELETE ON APIKeys BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    VALUES ('APIKeys', OLD.api_key_id, 'DELETE');
END;

CREATE TRIGGER trg_apikeys_insert_replaced BEFORE INSERT ON APIKeys BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    SELECT 'APIKeys', api_key_id, 'DELETE' FROM APIKeys
    WHERE api_key_id = NEW.api_key_id OR api_key = NEW.api_key
          OR api_key_hash = NEW.api_key_hash;
END;

CREATE TRIGGER trg_apikeys_update_replaced BEFORE UPDATE OF api_key_hash ON APIKeys
WHEN NEW.api_key_hash IS NOT OLD.api_key_hash BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    SELECT 'APIKeys', api_key_id, 'DELETE' FROM APIKeys
    WHERE api_key_hash = NEW.api_key_hash AND api_key_id <> OLD.api_key_id;
END;

CREATE TRIGGER trg_apikeys_identity BEFORE UPDATE ON APIKeys
WHEN NEW.api_key_id IS NOT OLD.api_key_id OR NEW.api_key IS NOT OLD.api_key BEGIN
    SELECT RAISE(ABORT, 'APIKeys.api_key_id and api_key never change: issue a new key');
END;

CREATE TRIGGER trg_services_insert AFTER INSERT ON Services BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    VALUES ('Services', NEW.service_id, 'INSERT');
END;

CREATE TRIGGER trg_services_update AFTER UPDATE ON Services BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    VALUES ('Services', NEW.service_id, 'UPDATE');
END;

CREATE TRIGGER trg_services_delete AFTER DELETE ON Services BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    VALUES ('Services', OLD.service_id, 'DELETE');
END;

CREATE TRIGGER trg_services_insert_replaced BEFORE INSERT ON Services BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    SELECT 'Services', service_id, 'DELETE' FROM Services
    WHERE service_id = NEW.service_id OR name = NEW.name;
END;

CREATE TRIGGER trg_services_update_replaced BEFORE UPDATE OF name ON Services
WHEN NEW.name IS NOT OLD.name BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    SELECT 'Services', service_id, 'DELETE' FROM Services
    WHERE name = NEW.name AND service_id <> OLD.service_id;
END;

CREATE TRIGGER trg_services_identity BEFORE UPDATE ON Services
WHEN NEW.service_id IS NOT OLD.service_id BEGIN
    SELECT RAISE(ABORT, 'Services.service_id never changes: delete the row and insert a new one');
END;

CREATE TRIGGER trg_apikeystatuses_insert AFTER INSERT ON APIKeyStatuses BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    VALUES ('APIKeyStatuses', NEW.status_id, 'INSERT');
END;

CREATE TRIGGER trg_apikeystatuses_update AFTER UPDATE ON APIKeyStatuses BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    VALUES ('APIKeyStatuses', NEW.status_id, 'UPDATE');
END;

CREATE TRIGGER trg_apikeystatuses_delete AFTER DELETE ON APIKeyStatuses BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    VALUES ('APIKeyStatuses', OLD.status_id, 'DELETE');
END;

CREATE TRIGGER trg_apikeystatuses_insert_replaced BEFORE INSERT ON APIKeyStatuses BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    SELECT 'APIKeyStatuses', status_id, 'DELETE' FROM APIKeyStatuses
    WHERE status_id = NEW.status_id OR name = NEW.name;
END;

CREATE TRIGGER trg_apikeystatuses_update_replaced BEFORE UPDATE OF name ON APIKeyStatuses
WHEN NEW.name IS NOT OLD.name BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    SELECT 'APIKeyStatuses', status_id, 'DELETE' FROM APIKeyStatuses
    WHERE name = NEW.name AND status_id <> OLD.status_id;
END;

CREATE TRIGGER trg_apikeystatuses_identity BEFORE UPDATE ON APIKeyStatuses
WHEN NEW.status_id IS NOT OLD.status_id BEGIN
    SELECT RAISE(ABORT, 'APIKeyStatuses.status_id never changes: delete the row and insert a new one');
END;

CREATE TRIGGER trg_apikeyservicequotas_insert AFTER INSERT ON APIKeyServiceQuotas BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    VALUES ('APIKeyServiceQuotas', NEW.quota_id, 'INSERT');
END;

CREATE TRIGGER trg_apikeyservicequotas_update AFTER UPDATE ON APIKeyServiceQuotas BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    VALUES ('APIKeyServiceQuotas', NEW.quota_id, 'UPDATE');
END;

CREATE TRIGGER trg_apikeyservicequotas_delete AFTER DELETE ON APIKeyServiceQuotas BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    VALUES ('APIKeyServiceQuotas', OLD.quota_id, 'DELETE');
END;

CREATE TRIGGER trg_apikeyservicequotas_insert_replaced BEFORE INSERT ON APIKeyServiceQuotas BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    SELECT 'APIKeyServiceQuotas', quota_id, 'DELETE' FROM APIKeyServiceQuotas
    WHERE quota_id = NEW.quota_id OR (api_key_id = NEW.api_key_id AND service_id = NEW.service_id);
END;

CREATE TRIGGER trg_apikeyservicequotas_update_replaced BEFORE UPDATE OF api_key_id, service_id ON APIKeyServiceQuotas
WHEN NEW.api_key_id IS NOT OLD.api_key_id OR NEW.service_id IS NOT OLD.service_id BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    SELECT 'APIKeyServiceQuotas', quota_id, 'DELETE' FROM APIKeyServiceQuotas
    WHERE api_key_id = NEW.api_key_id AND service_id = NEW.service_id AND quota_id <> OLD.quota_id;
END;

CREATE TRIGGER trg_apikeyservicequotas_identity BEFORE UPDATE ON APIKeyServiceQuotas
WHEN NEW.quota_id IS NOT OLD.quota_id BEGIN
    SELECT RAISE(ABORT, 'APIKeyServiceQuotas.quota_id never changes: delete the row and insert a new one');
END;

CREATE TRIGGER trg_oauthclients_insert AFTER INSERT ON OAuthClients BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    VALUES ('OAuthClients', NEW.oauth_client_id, 'INSERT');
END;

CREATE TRIGGER trg_oauthclients_update AFTER UPDATE ON OAuthClients BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    VALUES ('OAuthClients', NEW.oauth_client_id, 'UPDATE');
END;

CREATE TRIGGER trg_oauthclients_delete AFTER DELETE ON OAuthClients BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    VALUES ('OAuthClients', OLD.oauth_client_id, 'DELETE');
END;

CREATE TRIGGER trg_oauthclients_insert_replaced BEFORE INSERT ON OAuthClients BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    SELECT 'OAuthClients', oauth_client_id, 'DELETE' FROM OAuthClients
    WHERE oauth_client_id = NEW.oauth_client_id OR client_id = NEW.client_id;
END;

CREATE TRIGGER trg_oauthclients_identity BEFORE UPDATE ON OAuthClients
WHEN NEW.oauth_client_id IS NOT OLD.oauth_client_id OR NEW.client_id IS NOT OLD.client_id BEGIN
    SELECT RAISE(ABORT, 'OAuthClients.oauth_client_id and client_id never change: add a new client');
END;

CREATE TRIGGER trg_planservicequotas_insert AFTER INSERT ON PlanServiceQuotas BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    VALUES ('PlanServiceQuotas', NEW.plan_quota_id, 'INSERT');
END;

CREATE TRIGGER trg_planservicequotas_update AFTER UPDATE ON PlanServiceQuotas BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    VALUES ('PlanServiceQuotas', NEW.plan_quota_id, 'UPDATE');
END;

CREATE TRIGGER trg_planservicequotas_delete AFTER DELETE ON PlanServiceQuotas BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    VALUES ('PlanServiceQuotas', OLD.plan_quota_id, 'DELETE');
END;

CREATE TRIGGER trg_planservicequotas_insert_replaced BEFORE INSERT ON PlanServiceQuotas BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    SELECT 'PlanServiceQuotas', plan_quota_id, 'DELETE' FROM PlanServiceQuotas
    WHERE plan_quota_id = NEW.plan_quota_id OR (plan_id = NEW.plan_id AND service_id = NEW.service_id);
END;

CREATE TRIGGER trg_planservicequotas_update_replaced BEFORE UPDATE OF plan_id, service_id ON PlanServiceQuotas
WHEN NEW.plan_id IS NOT OLD.plan_id OR NEW.service_id IS NOT OLD.service_id BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    SELECT 'PlanServiceQuotas', plan_quota_id, 'DELETE' FROM PlanServiceQuotas
    WHERE plan_id = NEW.plan_id AND service_id = NEW.service_id AND plan_quota_id <> OLD.plan_quota_id;
END;

CREATE TRIGGER trg_planservicequotas_identity BEFORE UPDATE ON PlanServiceQuotas
WHEN NEW.plan_quota_id IS NOT OLD.plan_quota_id BEGIN
    SELECT RAISE(ABORT, 'PlanServiceQuotas.plan_quota_id never changes: delete the row and insert a new one');
END;

CREATE TRIGGER trg_providers_insert AFTER INSERT ON Providers BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    VALUES ('Providers', NEW.provider_id, 'INSERT');
END;

CREATE TRIGGER trg_providers_update AFTER UPDATE ON Providers BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    VALUES ('Providers', NEW.provider_id, 'UPDATE');
END;

CREATE TRIGGER trg_providers_delete AFTER DELETE ON Providers BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    VALUES ('Providers', OLD.provider_id, 'DELETE');
END;

CREATE TRIGGER trg_providers_insert_replaced BEFORE INSERT ON Providers BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    SELECT 'Providers', provider_id, 'DELETE' FROM Providers
    WHERE provider_id = NEW.provider_id OR name = NEW.name;
END;

CREATE TRIGGER trg_providers_update_replaced BEFORE UPDATE OF name ON Providers
WHEN NEW.name IS NOT OLD.name BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    SELECT 'Providers', provider_id, 'DELETE' FROM Providers
    WHERE name = NEW.name AND provider_id <> OLD.provider_id;
END;

CREATE TRIGGER trg_providers_identity BEFORE UPDATE ON Providers
WHEN NEW.provider_id IS NOT OLD.provider_id BEGIN
    SELECT RAISE(ABORT, 'Providers.provider_id never changes: delete the row and insert a new one');
END;

CREATE TRIGGER trg_models_insert AFTER INSERT ON Models BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    VALUES ('Models', NEW.model_id, 'INSERT');
END;

CREATE TRIGGER trg_models_update AFTER UPDATE ON Models BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    VALUES ('Models', NEW.model_id, 'UPDATE');
END;

CREATE TRIGGER trg_models_delete AFTER DELETE ON Models BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    VALUES ('Models', OLD.model_id, 'DELETE');
END;

CREATE TRIGGER trg_models_insert_replaced BEFORE INSERT ON Models BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    SELECT 'Models', model_id, 'DELETE' FROM Models
    WHERE model_id = NEW.model_id OR name = NEW.name;
END;

CREATE TRIGGER trg_models_update_replaced BEFORE UPDATE OF name ON Models
WHEN NEW.name IS NOT OLD.name BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    SELECT 'Models', model_id, 'DELETE' FROM Models
    WHERE name = NEW.name AND model_id <> OLD.model_id;
END;

CREATE TRIGGER trg_models_identity BEFORE UPDATE ON Models
WHEN NEW.model_id IS NOT OLD.model_id BEGIN
    SELECT RAISE(ABORT, 'Models.model_id never changes: delete the row and insert a new one');
END;

CREATE TRIGGER trg_modelpricing_insert AFTER INSERT ON ModelPricing BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    VALUES ('ModelPricing', NEW.model_pricing_id, 'INSERT');
END;

CREATE TRIGGER trg_modelpricing_update AFTER UPDATE ON ModelPricing BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    VALUES ('ModelPricing', NEW.model_pricing_id, 'UPDATE');
END;

CREATE TRIGGER trg_modelpricing_delete AFTER DELETE ON ModelPricing BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    VALUES ('ModelPricing', OLD.model_pricing_id, 'DELETE');
END;

CREATE TRIGGER trg_modelpricing_insert_replaced BEFORE INSERT ON ModelPricing BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    SELECT 'ModelPricing', model_pricing_id, 'DELETE' FROM ModelPricing
    WHERE model_pricing_id = NEW.model_pricing_id OR (model_id = NEW.model_id AND effective_from = NEW.effective_from);
END;

CREATE TRIGGER trg_modelpricing_update_replaced BEFORE UPDATE OF model_id, effective_from ON ModelPricing
WHEN NEW.model_id IS NOT OLD.model_id OR NEW.effective_from IS NOT OLD.effective_from BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    SELECT 'ModelPricing', model_pricing_id, 'DELETE' FROM ModelPricing
    WHERE model_id = NEW.model_id AND effective_from = NEW.effective_from AND model_pricing_id <> OLD.model_pricing_id;
END;

CREATE TRIGGER trg_modelpricing_identity BEFORE UPDATE ON ModelPricing
WHEN NEW.model_pricing_id IS NOT OLD.model_pricing_id BEGIN
    SELECT RAISE(ABORT, 'ModelPricing.model_pricing_id never changes: delete the row and insert a new one');
END;

CREATE TRIGGER trg_usagesettlements_insert AFTER INSERT ON UsageSettlements BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    VALUES ('UsageSettlements', NEW.settlement_id, 'INSERT');
END;

CREATE TRIGGER trg_usagesettlements_update AFTER UPDATE ON UsageSettlements BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    VALUES ('UsageSettlements', NEW.settlement_id, 'UPDATE');
END;

CREATE TRIGGER trg_usagesettlements_delete AFTER DELETE ON UsageSettlements BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    VALUES ('UsageSettlements', OLD.settlement_id, 'DELETE');
END;

CREATE TRIGGER trg_usagesettlements_insert_replaced BEFORE INSERT ON UsageSettlements BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    SELECT 'UsageSettlements', settlement_id, 'DELETE' FROM UsageSettlements
    WHERE settlement_id = NEW.settlement_id OR replica_id = NEW.replica_id;
END;

CREATE TRIGGER trg_usagesettlements_update_replaced BEFORE UPDATE OF replica_id ON UsageSettlements
WHEN NEW.replica_id IS NOT OLD.replica_id BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    SELECT 'UsageSettlements', settlement_id, 'DELETE' FROM UsageSettlements
    WHERE replica_id = NEW.replica_id AND settlement_id <> OLD.settlement_id;
END;

CREATE TRIGGER trg_usagesettlements_identity BEFORE UPDATE ON UsageSettlements
WHEN NEW.settlement_id IS NOT OLD.settlement_id BEGIN
    SELECT RAISE(ABORT, 'UsageSettlements.settlement_id never changes: delete the row and insert a new one');
END;

-- is_active and status are one truth. The rule that finds what to write: a status that was changed
-- wins; else an is_active that was changed picks 'assigned' or 'revoked'; and is_active is whether the
-- status allows access. Not during a replay: the origin has settled it.

CREATE TRIGGER trg_apikeys_insert_status AFTER INSERT ON APIKeys
WHEN NOT (NEW.is_active AND NEW.status = 'assigned')
     AND NOT (SELECT replaying FROM StoreInfo) BEGIN
    UPDATE APIKeys SET status = 'revoked'
    WHERE api_key_id = NEW.api_key_id AND NOT NEW.is_active
          AND (SELECT allows_access AND is_active FROM APIKeyStatuses WHERE name = NEW.status);
    UPDATE APIKeys SET is_active = 0
    WHERE api_key_id = NEW.api_key_id AND NEW.is_active
          AND NOT coalesce((SELECT allows_access AND is_active FROM APIKeyStatuses
                            WHERE name = NEW.status), 0);
END;

CREATE TRIGGER trg_apikeys_update_status AFTER UPDATE OF status, is_active ON APIKeys
WHEN (NEW.status IS NOT OLD.status OR NEW.is_active IS NOT OLD.is_active)
     AND NEW.is_active <> coalesce((SELECT allows_access AND is_active FROM APIKeyStatuses
                                    WHERE name = NEW.status), 0)
     AND NOT (SELECT replaying FROM StoreInfo) BEGIN
    UPDATE APIKeys SET
        status = CASE WHEN NEW.status IS NOT OLD.status THEN NEW.status
                      WHEN NEW.is_active THEN 'assigned' ELSE 'revoked' END,
        is_active = CASE WHEN NEW.status IS NOT OLD.status
                         THEN coalesce((SELECT allows_access AND is_active FROM APIKeyStatuses
                                        WHERE name = NEW.status), 0)
                         ELSE NEW.is_active END,
        -- the reason of the status before is none for this one
        status_reason = CASE WHEN NEW.status_reason IS NOT OLD.status_reason
                                  OR NEW.status IS NOT OLD.status
                             THEN NEW.status_reason END
    WHERE api_key_id = NEW.api_key_id;
END;

CREATE TRIGGER trg_apikeystatuses_update_keys AFTER UPDATE ON APIKeyStatuses
WHEN (NEW.allows_access AND NEW.is_active) IS NOT (OLD.allows_access AND OLD.is_active)
     AND NOT (SELECT replaying FROM StoreInfo) BEGIN
    UPDATE APIKeys SET is_active = (NEW.allows_access AND NEW.is_active)
    WHERE status = NEW.name AND is_active <> (NEW.allows_access AND NEW.is_active);
END;

-- A status that comes, goes or is renamed under its keys (REPLACE; foreign keys off) closes them.

CREATE TRIGGER trg_apikeystatuses_insert_keys AFTER INSERT ON APIKeyStatuses
WHEN NOT (NEW.allows_access AND NEW.is_active) AND NOT (SELECT replaying FROM StoreInfo) BEGIN
    UPDATE APIKeys SET is_active = 0 WHERE status = NEW.name AND is_active;
END;

CREATE TRIGGER trg_apikeystatuses_delete_keys AFTER DELETE ON APIKeyStatuses
WHEN NOT (SELECT replaying FROM StoreInfo) BEGIN
    UPDATE APIKeys SET is_active = 0 WHERE status = OLD.name AND is_active;
END;

CREATE TRIGGER trg_apikeystatuses_rename_keys AFTER UPDATE OF name ON APIKeyStatuses
WHEN NEW.name IS NOT OLD.name AND NOT (SELECT replaying FROM StoreInfo) BEGIN
    UPDATE APIKeys SET is_active = 0 WHERE status = OLD.name AND is_active;
    UPDATE APIKeys SET is_active = 0
    WHERE status = NEW.name AND is_active AND NOT (NEW.allows_access AND NEW.is_active);
END;

-- The timeline. The statement that settles is_active and status fires these as well, so each change is
-- told once, when it happens.

CREATE TRIGGER trg_apikeys_update_event AFTER UPDATE OF status ON APIKeys
WHEN NEW.status IS NOT OLD.status AND NOT (SELECT replaying FROM StoreInfo) BEGIN
    INSERT INTO APIKeyStatusEvents (api_key_id, api_key, old_status, status, reason)
    VALUES (NEW.api_key_id, NEW.api_key, OLD.status, NEW.status, NEW.status_reason);
END;

CREATE TRIGGER trg_apikeys_delete_event AFTER DELETE ON APIKeys
WHEN NOT (SELECT replaying FROM StoreInfo) BEGIN
    INSERT INTO APIKeyStatusEvents (api_key_id, api_key, old_status, status)
    VALUES (OLD.api_key_id, OLD.api_key, OLD.status, 'deleted');
END;

-- With RAISE and not with CHECK: who writes here with OR IGNORE is told, too.
CREATE TRIGGER trg_apikeystatusevents_form BEFORE INSERT ON APIKeyStatusEvents
WHEN typeof(NEW.api_key_id) <> 'integer' OR length(NEW.api_key) <> 36
     OR length(replace(NEW.api_key, '-', '')) <> 32
     OR replace(NEW.api_key, '-', '') GLOB '*[^0-9a-f]*'
     OR typeof(NEW.status) <> 'text' OR instr(NEW.status, char(0)) > 0
     OR NEW.occurred_at IS NOT datetime(strftime('%s', NEW.occurred_at), 'unixepoch') BEGIN
    SELECT RAISE(ABORT, 'APIKeyStatusEvents is written by triggers');
END;

CREATE TRIGGER trg_apikeystatusevents_insert AFTER INSERT ON APIKeyStatusEvents BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    VALUES ('APIKeyStatusEvents', NEW.event_id, 'INSERT');
END;

-- (`keystore doctor --fix` may: a reason that is not UTF-8 could never be pushed)
CREATE TRIGGER trg_apikeystatusevents_update BEFORE UPDATE ON APIKeyStatusEvents
WHEN NOT (SELECT replaying FROM StoreInfo) BEGIN
    SELECT RAISE(ABORT, 'APIKeyStatusEvents is append-only');
END;

CREATE TRIGGER trg_apikeystatusevents_delete BEFORE DELETE ON APIKeyStatusEvents
WHEN NOT (SELECT replaying FROM StoreInfo) BEGIN
    SELECT RAISE(ABORT, 'APIKeyStatusEvents is append-only');
END;

-- The ChangeLog is append-only: a row that is removed before it was pushed is a change that is lost.
-- (Who writes REPLACE INTO ChangeLog with an id of his own can still forge a row. A BEFORE INSERT
-- trigger would stop him and was measured: it adds a tenth to every tracked write.)

CREATE TRIGGER trg_changelog_update BEFORE UPDATE ON ChangeLog BEGIN
    SELECT RAISE(ABORT, 'ChangeLog is append-only');
END;

CREATE TRIGGER trg_changelog_delete BEFORE DELETE ON ChangeLog
WHEN NOT (SELECT replaying FROM StoreInfo) BEGIN
    SELECT RAISE(ABORT, 'ChangeLog is append-only: keystore compact shortens it');
END;

-- Revocations from a hub. The log row tells those who remember the key that it passes no longer.

CREATE TRIGGER trg_revocations_insert AFTER INSERT ON Revocations BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    SELECT 'APIKeys', api_key_id, 'UPDATE' FROM APIKeys WHERE api_key = NEW.api_key;
END;

-- (with RAISE: a CHECK would let who writes with OR IGNORE believe that the key is revoked)
CREATE TRIGGER trg_revocations_form BEFORE INSERT ON Revocations
WHEN typeof(NEW.api_key) <> 'text' OR instr(NEW.api_key, char(0)) > 0
     OR NEW.api_key NOT GLOB '????????-????-????-????-????????????'
     OR length(replace(NEW.api_key, '-', '')) <> 32
     OR replace(NEW.api_key, '-', '') GLOB '*[^0-9a-f]*'
     OR instr(NEW.reason, char(0)) > 0
     OR NEW.revoked_at IS NOT datetime(strftime('%s', NEW.revoked_at), 'unixepoch') BEGIN
    SELECT RAISE(ABORT, 'a revocation holds a UUID in lower case, a time in UTC, and no NUL');
END;

CREATE TRIGGER trg_revocations_insert_replaced BEFORE INSERT ON Revocations
WHEN EXISTS (SELECT 1 FROM Revocations
             WHERE revocation_id = NEW.revocation_id AND api_key <> NEW.api_key) BEGIN
    SELECT RAISE(ABORT, 'Revocations only grow');
END;

CREATE TRIGGER trg_revocations_update BEFORE UPDATE ON Revocations BEGIN
    SELECT RAISE(ABORT, 'Revocations only grow');
END;

CREATE TRIGGER trg_revocations_delete BEFORE DELETE ON Revocations BEGIN
    SELECT RAISE(ABORT, 'Revocations only grow');
END;

CREATE TRIGGER trg_apikeys_revoked BEFORE UPDATE OF is_active ON APIKeys
WHEN NEW.is_active AND NOT OLD.is_active AND NOT (SELECT replaying FROM StoreInfo)
     AND EXISTS (SELECT 1 FROM Revocations WHERE api_key = OLD.api_key) BEGIN
    SELECT RAISE(ABORT, 'this key was revoked at a hub, which is for good: issue a new one');
END;

-- (deleted and inserted again, or replaced)
CREATE TRIGGER trg_apikeys_insert_revoked BEFORE INSERT ON APIKeys
WHEN NEW.is_active AND NEW.status <> 'revoked'
     AND EXISTS (SELECT 1 FROM Revocations WHERE api_key = NEW.api_key)
     AND NOT (SELECT replaying FROM StoreInfo) BEGIN
    SELECT RAISE(ABORT, 'this key was revoked at a hub, which is for good: issue a new one');
END;

-- Usage is handed up in the order of its ids, and what was handed up is not looked at again: a row that
-- is put in before others, or changed, would never arrive. (usage_id is -1 here when SQLite picks it.)

CREATE TRIGGER trg_usagelog_insert BEFORE INSERT ON UsageLog
WHEN NEW.usage_id <> -1 AND NEW.usage_id <= (SELECT max(usage_id) FROM UsageLog) BEGIN
    SELECT RAISE(ABORT, 'UsageLog is append-only: leave the usage_id to SQLite');
END;

CREATE TRIGGER trg_usagelog_update BEFORE UPDATE ON UsageLog BEGIN
    SELECT RAISE(ABORT, 'UsageLog is append-only');
END;

-- (a roll-up sums rows, and removes them, in one transaction)
CREATE TRIGGER trg_usagelog_delete BEFORE DELETE ON UsageLog
WHEN NOT (SELECT replaying FROM StoreInfo) BEGIN
    SELECT RAISE(ABORT, 'UsageLog is append-only');
END;

-- Usage that replicas have handed up in files is a set that only grows: what is there is neither
-- changed nor replaced, and adding it again changes nothing.

CREATE TRIGGER trg_receivedusage_insert BEFORE INSERT ON ReceivedUsage
WHEN EXISTS (SELECT 1 FROM ReceivedUsage
             WHERE store_id = NEW.store_id AND usage_id = NEW.usage_id AND nonce = NEW.nonce) BEGIN
    SELECT RAISE(IGNORE);
END;

CREATE TRIGGER trg_receivedusage_update BEFORE UPDATE ON ReceivedUsage BEGIN
    SELECT RAISE(ABORT, 'ReceivedUsage is append-only');
END;

CREATE TRIGGER trg_receivedusage_delete BEFORE DELETE ON ReceivedUsage BEGIN
    SELECT RAISE(ABORT, 'ReceivedUsage is append-only');
END;

-- The ledger is append-only, and the balance is what it sums to: a row moves the balance with it, and a row
-- that would take it below zero is refused with everything that came with it.

CREATE TRIGGER trg_creditledger_insert BEFORE INSERT ON CreditLedger
WHEN NEW.ledger_id <> -1 AND NEW.ledger_id <= (SELECT max(ledger_id) FROM CreditLedger) BEGIN
    SELECT RAISE(ABORT, 'CreditLedger is append-only: leave the ledger_id to SQLite');
END;

CREATE TRIGGER trg_creditledger_balance BEFORE INSERT ON CreditLedger
WHEN NEW.balance_nano IS NOT
     coalesce((SELECT balance_nano FROM CreditBalances WHERE account_id = NEW.account_id), 0)
     + NEW.amount_nano BEGIN
    SELECT RAISE(ABORT, 'balance_nano is not the balance after this row');
END;

CREATE TRIGGER trg_creditledger_inserted AFTER INSERT ON CreditLedger BEGIN
    INSERT INTO CreditBalances (account_id, balance_nano)
    VALUES (NEW.account_id, NEW.balance_nano)
    ON CONFLICT (account_id) DO UPDATE SET balance_nano = excluded.balance_nano;
END;

CREATE TRIGGER trg_creditledger_update BEFORE UPDATE ON CreditLedger BEGIN
    SELECT RAISE(ABORT, 'CreditLedger is append-only');
END;

CREATE TRIGGER trg_creditledger_delete BEFORE DELETE ON CreditLedger BEGIN
    SELECT RAISE(ABORT, 'CreditLedger is append-only');
END;

CREATE TRIGGER trg_creditbalances_insert BEFORE INSERT ON CreditBalances
WHEN NEW.balance_nano IS NOT (SELECT balance_nano FROM CreditLedger WHERE account_id = NEW.account_id
                              ORDER BY ledger_id DESC LIMIT 1) BEGIN
    SELECT RAISE(ABORT, 'CreditBalances follows CreditLedger: insert there');
END;

CREATE TRIGGER trg_creditbalances_update BEFORE UPDATE ON CreditBalances
WHEN NEW.account_id IS NOT OLD.account_id
  OR NEW.balance_nano IS NOT (SELECT balance_nano FROM CreditLedger WHERE account_id = NEW.account_id
                              ORDER BY ledger_id DESC LIMIT 1) BEGIN
    SELECT RAISE(ABORT, 'CreditBalances follows CreditLedger: insert there');
END;

CREATE TRIGGER trg_creditbalances_delete BEFORE DELETE ON CreditBalances BEGIN
    SELECT RAISE(ABORT, 'CreditBalances follows CreditLedger: insert there');
END;
