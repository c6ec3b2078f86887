"""Validates keys from a local store, online or not.

This package imports no sqlite-utils, click, pydantic or psycopg: a proxy that embeds the
validator pays for the validator alone.
"""

from keystore.edge.decision import Decision, Freshness, Limit, Rate, RateLimit, Reason
from keystore.edge.validator import Validator

__all__ = ["Decision", "Freshness", "Limit", "Rate", "RateLimit", "Reason", "Validator"]
