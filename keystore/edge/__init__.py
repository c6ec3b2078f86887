"""Validates keys from a local store, online or not.

This package imports no sqlite-utils, click, pydantic or psycopg: a proxy that embeds the
validator pays for the validator alone.
"""

from keystore.edge.decision import (
    ClientCredentials,
    Decision,
    Freshness,
    Limit,
    QuotaLeft,
    Rate,
    RateLimit,
    Reason,
)
from keystore.edge.validator import Validator

__all__ = [
    "ClientCredentials",
    "Decision",
    "Freshness",
    "Limit",
    "QuotaLeft",
    "Rate",
    "RateLimit",
    "Reason",
    "Validator",
]
