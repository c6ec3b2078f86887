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
--       would slip past a list of column names.
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

CREATE TRIGGER trg_plans_update_replaced BEFORE UPDATE ON Plans
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

CREATE TRIGGER trg_accounts_update_replaced BEFORE UPDATE ON Accounts
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

CREATE TRIGGER trg_apikeys_update_replaced BEFORE UPDATE ON APIKeys
WHEN NEW.api_key_hash IS NOT OLD.api_key_hash BEGIN
    INSERT INTO ChangeLog (table_name, record_id, operation)
    SELECT 'APIKeys', api_key_id, 'DELETE' FROM APIKeys
    WHERE api_key_hash = NEW.api_key_hash AND api_key_id <> OLD.api_key_id;
END;

CREATE TRIGGER trg_apikeys_identity BEFORE UPDATE ON APIKeys
WHEN NEW.api_key_id IS NOT OLD.api_key_id OR NEW.api_key IS NOT OLD.api_key BEGIN
    SELECT RAISE(ABORT, 'APIKeys.api_key_id and api_key never change: issue a new key');
END;

-- The ChangeLog is append-only: a row that is removed before it was pushed is a change that is lost.

CREATE TRIGGER trg_changelog_update BEFORE UPDATE ON ChangeLog BEGIN
    SELECT RAISE(ABORT, 'ChangeLog is append-only');
END;

CREATE TRIGGER trg_changelog_delete BEFORE DELETE ON ChangeLog BEGIN
    SELECT RAISE(ABORT, 'ChangeLog is append-only');
END;
