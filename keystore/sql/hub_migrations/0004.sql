-- Version 3 to 4: plans get a rate.

ALTER TABLE keystore.plans
    ADD COLUMN rate_limit BIGINT,
    ADD COLUMN rate_window_seconds BIGINT,
    ADD COLUMN rate_burst BIGINT;

UPDATE keystore.hub_info SET schema_version = 4;
