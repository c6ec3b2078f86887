-- Only in a replica: its key tables mirror the origin, and nobody but the replay writes them, with
-- whichever SQLite client. Kept out of an origin, whose writes then pay nothing for it.

CREATE TRIGGER trg_plans_insert_read_only BEFORE INSERT ON Plans
WHEN (SELECT NOT replaying FROM StoreInfo) BEGIN
    SELECT RAISE(ABORT, 'this store is a read-only replica: write at its origin, then keystore sync');
END;

CREATE TRIGGER trg_plans_update_read_only BEFORE UPDATE ON Plans
WHEN (SELECT NOT replaying FROM StoreInfo) BEGIN
    SELECT RAISE(ABORT, 'this store is a read-only replica: write at its origin, then keystore sync');
END;

CREATE TRIGGER trg_plans_delete_read_only BEFORE DELETE ON Plans
WHEN (SELECT NOT replaying FROM StoreInfo) BEGIN
    SELECT RAISE(ABORT, 'this store is a read-only replica: write at its origin, then keystore sync');
END;

CREATE TRIGGER trg_accounts_insert_read_only BEFORE INSERT ON Accounts
WHEN (SELECT NOT replaying FROM StoreInfo) BEGIN
    SELECT RAISE(ABORT, 'this store is a read-only replica: write at its origin, then keystore sync');
END;

CREATE TRIGGER trg_accounts_update_read_only BEFORE UPDATE ON Accounts
WHEN (SELECT NOT replaying FROM StoreInfo) BEGIN
    SELECT RAISE(ABORT, 'this store is a read-only replica: write at its origin, then keystore sync');
END;

CREATE TRIGGER trg_accounts_delete_read_only BEFORE DELETE ON Accounts
WHEN (SELECT NOT replaying FROM StoreInfo) BEGIN
    SELECT RAISE(ABORT, 'this store is a read-only replica: write at its origin, then keystore sync');
END;

CREATE TRIGGER trg_apikeys_insert_read_only BEFORE INSERT ON APIKeys
WHEN (SELECT NOT replaying FROM StoreInfo) BEGIN
    SELECT RAISE(ABORT, 'this store is a read-only replica: write at its origin, then keystore sync');
END;

CREATE TRIGGER trg_apikeys_update_read_only BEFORE UPDATE ON APIKeys
WHEN (SELECT NOT replaying FROM StoreInfo) BEGIN
    SELECT RAISE(ABORT, 'this store is a read-only replica: write at its origin, then keystore sync');
END;

CREATE TRIGGER trg_apikeys_delete_read_only BEFORE DELETE ON APIKeys
WHEN (SELECT NOT replaying FROM StoreInfo) BEGIN
    SELECT RAISE(ABORT, 'this store is a read-only replica: write at its origin, then keystore sync');
END;

CREATE TRIGGER trg_services_insert_read_only BEFORE INSERT ON Services
WHEN (SELECT NOT replaying FROM StoreInfo) BEGIN
    SELECT RAISE(ABORT, 'this store is a read-only replica: write at its origin, then keystore sync');
END;

CREATE TRIGGER trg_services_update_read_only BEFORE UPDATE ON Services
WHEN (SELECT NOT replaying FROM StoreInfo) BEGIN
    SELECT RAISE(ABORT, 'this store is a read-only replica: write at its origin, then keystore sync');
END;

CREATE TRIGGER trg_services_delete_read_only BEFORE DELETE ON Services
WHEN (SELECT NOT replaying FROM StoreInfo) BEGIN
    SELECT RAISE(ABORT, 'this store is a read-only replica: write at its origin, then keystore sync');
END;

CREATE TRIGGER trg_apikeystatuses_insert_read_only BEFORE INSERT ON APIKeyStatuses
WHEN (SELECT NOT replaying FROM StoreInfo) BEGIN
    SELECT RAISE(ABORT, 'this store is a read-only replica: write at its origin, then keystore sync');
END;

CREATE TRIGGER trg_apikeystatuses_update_read_only BEFORE UPDATE ON APIKeyStatuses
WHEN (SELECT NOT replaying FROM StoreInfo) BEGIN
    SELECT RAISE(ABORT, 'this store is a read-only replica: write at its origin, then keystore sync');
END;

CREATE TRIGGER trg_apikeystatuses_delete_read_only BEFORE DELETE ON APIKeyStatuses
WHEN (SELECT NOT replaying FROM StoreInfo) BEGIN
    SELECT RAISE(ABORT, 'this store is a read-only replica: write at its origin, then keystore sync');
END;

CREATE TRIGGER trg_apikeyservicequotas_insert_read_only BEFORE INSERT ON APIKeyServiceQuotas
WHEN (SELECT NOT replaying FROM StoreInfo) BEGIN
    SELECT RAISE(ABORT, 'this store is a read-only replica: write at its origin, then keystore sync');
END;

CREATE TRIGGER trg_apikeyservicequotas_update_read_only BEFORE UPDATE ON APIKeyServiceQuotas
WHEN (SELECT NOT replaying FROM StoreInfo) BEGIN
    SELECT RAISE(ABORT, 'this store is a read-only replica: write at its origin, then keystore sync');
END;

CREATE TRIGGER trg_apikeyservicequotas_delete_read_only BEFORE DELETE ON APIKeyServiceQuotas
WHEN (SELECT NOT replaying FROM StoreInfo) BEGIN
    SELECT RAISE(ABORT, 'this store is a read-only replica: write at its origin, then keystore sync');
END;

CREATE TRIGGER trg_apikeystatusevents_insert_read_only BEFORE INSERT ON APIKeyStatusEvents
WHEN (SELECT NOT replaying FROM StoreInfo) BEGIN
    SELECT RAISE(ABORT, 'this store is a read-only replica: write at its origin, then keystore sync');
END;

CREATE TRIGGER trg_apikeystatusevents_update_read_only BEFORE UPDATE ON APIKeyStatusEvents
WHEN (SELECT NOT replaying FROM StoreInfo) BEGIN
    SELECT RAISE(ABORT, 'this store is a read-only replica: write at its origin, then keystore sync');
END;

CREATE TRIGGER trg_apikeystatusevents_delete_read_only BEFORE DELETE ON APIKeyStatusEvents
WHEN (SELECT NOT replaying FROM StoreInfo) BEGIN
    SELECT RAISE(ABORT, 'this store is a read-only replica: write at its origin, then keystore sync');
END;

CREATE TRIGGER trg_oauthclients_insert_read_only BEFORE INSERT ON OAuthClients
WHEN (SELECT NOT replaying FROM StoreInfo) BEGIN
    SELECT RAISE(ABORT, 'this store is a read-only replica: write at its origin, then keystore sync');
END;

CREATE TRIGGER trg_oauthclients_update_read_only BEFORE UPDATE ON OAuthClients
WHEN (SELECT NOT replaying FROM StoreInfo) BEGIN
    SELECT RAISE(ABORT, 'this store is a read-only replica: write at its origin, then keystore sync');
END;

CREATE TRIGGER trg_oauthclients_delete_read_only BEFORE DELETE ON OAuthClients
WHEN (SELECT NOT replaying FROM StoreInfo) BEGIN
    SELECT RAISE(ABORT, 'this store is a read-only replica: write at its origin, then keystore sync');
END;

CREATE TRIGGER trg_planservicequotas_insert_read_only BEFORE INSERT ON PlanServiceQuotas
WHEN (SELECT NOT replaying FROM StoreInfo) BEGIN
    SELECT RAISE(ABORT, 'this store is a read-only replica: write at its origin, then keystore sync');
END;

CREATE TRIGGER trg_planservicequotas_update_read_only BEFORE UPDATE ON PlanServiceQuotas
WHEN (SELECT NOT replaying FROM StoreInfo) BEGIN
    SELECT RAISE(ABORT, 'this store is a read-only replica: write at its origin, then keystore sync');
END;

CREATE TRIGGER trg_planservicequotas_delete_read_only BEFORE DELETE ON PlanServiceQuotas
WHEN (SELECT NOT replaying FROM StoreInfo) BEGIN
    SELECT RAISE(ABORT, 'this store is a read-only replica: write at its origin, then keystore sync');
END;

CREATE TRIGGER trg_providers_insert_read_only BEFORE INSERT ON Providers
WHEN (SELECT NOT replaying FROM StoreInfo) BEGIN
    SELECT RAISE(ABORT, 'this store is a read-only replica: write at its origin, then keystore sync');
END;

CREATE TRIGGER trg_providers_update_read_only BEFORE UPDATE ON Providers
WHEN (SELECT NOT replaying FROM StoreInfo) BEGIN
    SELECT RAISE(ABORT, 'this store is a read-only replica: write at its origin, then keystore sync');
END;

CREATE TRIGGER trg_providers_delete_read_only BEFORE DELETE ON Providers
WHEN (SELECT NOT replaying FROM StoreInfo) BEGIN
    SELECT RAISE(ABORT, 'this store is a read-only replica: write at its origin, then keystore sync');
END;

CREATE TRIGGER trg_models_insert_read_only BEFORE INSERT ON Models
WHEN (SELECT NOT replaying FROM StoreInfo) BEGIN
    SELECT RAISE(ABORT, 'this store is a read-only replica: write at its origin, then keystore sync');
END;

CREATE TRIGGER trg_models_update_read_only BEFORE UPDATE ON Models
WHEN (SELECT NOT replaying FROM StoreInfo) BEGIN
    SELECT RAISE(ABORT, 'this store is a read-only replica: write at its origin, then keystore sync');
END;

CREATE TRIGGER trg_models_delete_read_only BEFORE DELETE ON Models
WHEN (SELECT NOT replaying FROM StoreInfo) BEGIN
    SELECT RAISE(ABORT, 'this store is a read-only replica: write at its origin, then keystore sync');
END;

CREATE TRIGGER trg_modelpricing_insert_read_only BEFORE INSERT ON ModelPricing
WHEN (SELECT NOT replaying FROM StoreInfo) BEGIN
    SELECT RAISE(ABORT, 'this store is a read-only replica: write at its origin, then keystore sync');
END;

CREATE TRIGGER trg_modelpricing_update_read_only BEFORE UPDATE ON ModelPricing
WHEN (SELECT NOT replaying FROM StoreInfo) BEGIN
    SELECT RAISE(ABORT, 'this store is a read-only replica: write at its origin, then keystore sync');
END;

CREATE TRIGGER trg_modelpricing_delete_read_only BEFORE DELETE ON ModelPricing
WHEN (SELECT NOT replaying FROM StoreInfo) BEGIN
    SELECT RAISE(ABORT, 'this store is a read-only replica: write at its origin, then keystore sync');
END;

CREATE TRIGGER trg_usagesettlements_insert_read_only BEFORE INSERT ON UsageSettlements
WHEN (SELECT NOT replaying FROM StoreInfo) BEGIN
    SELECT RAISE(ABORT, 'this store is a read-only replica: write at its origin, then keystore sync');
END;

CREATE TRIGGER trg_usagesettlements_update_read_only BEFORE UPDATE ON UsageSettlements
WHEN (SELECT NOT replaying FROM StoreInfo) BEGIN
    SELECT RAISE(ABORT, 'this store is a read-only replica: write at its origin, then keystore sync');
END;

CREATE TRIGGER trg_usagesettlements_delete_read_only BEFORE DELETE ON UsageSettlements
WHEN (SELECT NOT replaying FROM StoreInfo) BEGIN
    SELECT RAISE(ABORT, 'this store is a read-only replica: write at its origin, then keystore sync');
END;
