"""The rooms of the admin side, one per kind of record; ``keystore.store.Store`` is their sum."""
