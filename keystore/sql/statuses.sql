-- What every origin starts with; made after the triggers, so that the ChangeLog tells of it.

INSERT INTO APIKeyStatuses (name, description, allows_access) VALUES
    ('assigned', 'in use by its account', 1),
    ('unassigned', 'made, but not yet given to its account', 0),
    ('exhausted', 'all quotas of the key are used up', 0),
    ('suspended', 'stopped for a while', 0),
    ('revoked', 'stopped for good', 0);
