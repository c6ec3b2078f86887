"""Prices and credits: what comes from outside, validated, and what the store answers."""

from typing import Annotated

from pydantic import BaseModel, Field

from keystore.models import Input, Moment, Text


class ProviderInput(Input):
    """A provider to add."""

    name: Text


class ModelInput(Input):
    """A model to add."""

    name: Text


class PriceInput(Input):
    """When a price begins; ``None``: as soon as may be."""

    effective_from: Moment | None


class EntryInput(Input):
    """What may be said of a movement of credits."""

    request_id: Text | None = None
    note: Text | None = None


class ChargeInput(Input):
    """Tokens to charge for."""

    input_tokens: Annotated[int, Field(ge=0, lt=2**31)]
    output_tokens: Annotated[int, Field(ge=0, lt=2**31)] = 0
    request_id: Text | None = None


class Provider(BaseModel):
    """A provider of models."""

    provider_id: int
    name: str
    models: int
    created_at: str
    updated_at: str


class Price(BaseModel):
    """What a model costs from a time on, in nano-credits for 1,000 tokens."""

    model_pricing_id: int
    input_nano_per_1k: int
    output_nano_per_1k: int
    effective_from: str
    created_at: str


class Model(BaseModel):
    """A model with the price that is in force, in nano-credits for 1,000 tokens."""

    model_id: int
    name: str
    provider: str
    is_active: bool
    input_nano_per_1k: int | None
    output_nano_per_1k: int | None
    effective_from: str | None


class LedgerEntry(BaseModel):
    """One movement of an account's credits, in nano-credits, and the balance after it."""

    ledger_id: int
    account_id: int
    kind: str
    amount_nano: int
    balance_nano: int
    request_id: str | None
    note: str | None
    model: str | None
    model_pricing_id: int | None
    input_tokens: int | None
    output_tokens: int | None
    usage_id: int | None
    occurred_at: str
