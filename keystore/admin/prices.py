"""Providers, their models, and what these cost.

A model is added with its provider known and its price in the same transaction, so there is never a
model without a price. A price that was in force is never changed: a new one begins in the next
second or later, so that one second has one price, whatever was charged in it.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from keystore import clock, credit_models, models, pricing, sql
from keystore.admin.base import Admin
from keystore.errors import AlreadyExistsError, InvalidInputError

_Q = sql.named("credits")
_PRICE_HINT = "Nothing was written; a price is a number of credits for 1,000 tokens, like 0.0025."


@dataclass(slots=True)
class PriceImport:
    """What became of a price list."""

    added: int = 0
    repriced: int = 0
    unchanged: int = 0
    providers: int = 0
    """That were added along."""
    rounded: list[str] = field(default_factory=list)
    """Models with a price that is no whole number of nano-credits; it is the nearest one."""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """Models that have no price for tokens, and why."""


class PriceAdmin(Admin):
    """Adds and lists providers, models and prices."""

    def add_provider(self, name: str) -> credit_models.Provider:
        """Add a provider.

        Raises:
            InvalidInputError, AlreadyExistsError, WrongRoleError
        """
        wanted = models.validated(credit_models.ProviderInput, "provider", name=name)
        with self._write():
            if self._is_taken("provider", wanted.name):
                raise AlreadyExistsError(
                    f"provider {wanted.name!r} exists already.",
                    hint="`keystore provider list` shows the providers.",
                )
            self._insert_provider(wanted.name)
            return next(item for item in self._providers() if item.name == wanted.name)

    def providers(self) -> list[credit_models.Provider]:
        """Return all providers, by name."""
        with self.file.read():
            return self._providers()

    def add_model(
        self, name: str, *, provider: str, input_per_1k: str, output_per_1k: str
    ) -> credit_models.Model:
        """Add a model with its price, in credits for 1,000 tokens, in force from now on.

        Raises:
            NotFoundError: the provider; InvalidInputError, AlreadyExistsError, WrongRoleError
        """
        wanted = models.validated(credit_models.ModelInput, "model", name=name)
        prices = _price(input_per_1k), _price(output_per_1k)
        with self._write():
            provider_id = self._find("provider", provider)
            if self._is_taken("model", wanted.name):
                raise AlreadyExistsError(
                    f"model {wanted.name!r} exists already.",
                    hint="`keystore model price` gives it a new price.",
                )
            self._insert_model(wanted.name, provider_id, prices)
            return self._model(wanted.name)

    def set_price(
        self,
        name: str,
        *,
        input_per_1k: str,
        output_per_1k: str,
        effective_from: str | None = None,
    ) -> credit_models.Price:
        """Give a model a new price, from the next second on or from a later one.

        A price that is to begin later can be replaced until then. ``effective_from`` is ISO 8601
        text; without a zone it is UTC.

        Raises:
            NotFoundError, WrongRoleError
            InvalidInputError: also for a time that has begun: what was charged stays explained.
        """
        prices = _price(input_per_1k), _price(output_per_1k)
        wanted = models.validated(credit_models.PriceInput, "price", effective_from=effective_from)
        with self._write():
            earliest = begins = _next_second()  # (of the clock that the lock was waited for by)
            if wanted.effective_from is not None:
                begins = clock.utc_text(wanted.effective_from.timestamp())
            if begins < earliest:
                raise InvalidInputError(
                    f"effective_from {begins} has begun already.",
                    hint="A price begins later than now; what was charged before stays explained.",
                )
            model_id = self._find("model", name)
            self._insert_price(model_id, prices, begins)
            rows = self._rows("prices", model_id=model_id)
            return next(
                credit_models.Price(**row) for row in rows if row["effective_from"] == begins
            )

    def list_models(self, *, provider: str | None = None) -> list[credit_models.Model]:
        """Return all models, or a provider's, with the price that is in force, by name.

        Raises:
            NotFoundError: the provider.
        """
        with self.file.read():
            if provider is not None:
                self._find("provider", provider)
            rows = self._rows("models", name=None, provider=provider, now=clock.utc_text())
            return [credit_models.Model(**row) for row in rows]

    def prices(self, model: str) -> list[credit_models.Price]:
        """Return the prices of a model, the newest first.

        Raises:
            NotFoundError
        """
        with self.file.read():
            model_id = self._find("model", model)
            return [credit_models.Price(**row) for row in self._rows("prices", model_id=model_id)]

    def import_prices(
        self, path: Path, *, on_progress: Callable[[int, int], None] = lambda _, __: None
    ) -> PriceImport:
        """Take a price list over: a JSON object of models, as LiteLLM keeps one, credits for USD.

        Each has ``litellm_provider``, and ``input_cost_per_token`` and ``output_cost_per_token``.
        What lacks one of them is left out and named with the reason; nothing is guessed. Models
        that are there get a new price, from the next second on, if it differs. All of it, or
        nothing.

        Raises:
            InvalidInputError: it is no such file; WrongRoleError
        """
        listed = _read(path)
        done = PriceImport()
        with self._write():
            # (with the prices that begin in a second: what an import has just set is no other one)
            begins = _next_second()
            rows = self._rows("models", name=None, provider=None, now=begins)
            known = {row["name"]: row for row in rows}
            providers = {row["name"]: row["provider_id"] for row in self._rows("providers")}
            for number, (name, said) in enumerate(listed.items(), start=1):
                try:
                    found = _listed(name, said)
                    self._take(found, known.get(name), providers, begins, done)
                except ValueError as error:
                    done.skipped.append((name, str(error)))
                on_progress(number, len(listed))
        return done

    def _take(
        self,
        found: "_Listed",
        known: Mapping[str, Any] | None,
        providers: dict[str, int],
        begins: str,
        done: PriceImport,
    ) -> None:
        """Take one model over.

        Raises:
            ValueError: why not.
        """
        if known is None:
            provider_id = providers.get(found.provider)
            if provider_id is None:
                provider_id = self._insert_provider(found.provider)
                providers[found.provider] = provider_id
                done.providers += 1
            self._insert_model(found.name, provider_id, found.prices)
            done.added += 1
        elif known["provider"] != found.provider:
            msg = f"is a model of {known['provider']} here, and of {found.provider} in the list"
            raise ValueError(msg)
        elif (known["input_nano_per_1k"], known["output_nano_per_1k"]) == found.prices:
            done.unchanged += 1
        else:
            self._insert_price(known["model_id"], found.prices, begins)
            done.repriced += 1
        if found.is_rounded:
            done.rounded.append(found.name)

    def _insert_provider(self, name: str) -> int:
        (provider_id,) = self.file.conn.execute(_Q["insert_provider"], (name,)).fetchone()
        return int(provider_id)

    def _insert_model(self, name: str, provider_id: int, prices: tuple[int, int]) -> None:
        found = self.file.conn.execute(_Q["insert_model"], (provider_id, name)).fetchone()
        self._insert_price(found[0], prices, clock.utc_text())

    def _insert_price(self, model_id: int, prices: tuple[int, int], begins: str) -> None:
        self.file.conn.execute(_Q["set_price"], (model_id, *prices, begins))

    def _providers(self) -> list[credit_models.Provider]:
        return [credit_models.Provider(**row) for row in self._rows("providers")]

    def _model(self, name: str) -> credit_models.Model:
        row = next(iter(self._rows("models", name=name, provider=None, now=clock.utc_text())))
        return credit_models.Model(**row)

    def _rows(self, statement: str, /, **values: object) -> list[dict[str, Any]]:
        return sql.dicts(self.file.conn.execute(_Q[statement], values))


def _price(text: str) -> int:
    try:
        exact = pricing.parse(text)
    except ValueError as error:
        raise InvalidInputError(f"price: {error}.", hint=_PRICE_HINT) from None
    if exact.is_rounded:
        raise InvalidInputError(
            f"price: {text} is no whole number of nano-credits (1e-9) for 1,000 tokens.",
            hint=_PRICE_HINT,
        )
    return exact.nano


def _next_second() -> str:
    return clock.utc_text(clock.seconds(clock.utc_text()) + 1)


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open(encoding="utf-8") as file:
            listed = json.load(
                file, parse_float=Decimal, parse_constant=Decimal, object_pairs_hook=_unique
            )
    except (ValueError, ArithmeticError, RecursionError) as error:
        why = error if isinstance(error, ValueError) else "a number is too large, or it is too deep"
        raise InvalidInputError(
            f"{path}: no price list: {why}.", hint="It is a JSON object of models."
        ) from error
    if not isinstance(listed, dict):
        raise InvalidInputError(
            f"{path}: no price list: no JSON object.", hint="It is a JSON object of models."
        )
    return listed


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # (which of two prices would be meant is a guess)
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            msg = f"{name!r} stands twice in an object"
            raise ValueError(msg)
        found[name] = value
    return found


class _Listed(NamedTuple):
    """What a list says of a model."""

    name: str
    provider: str
    prices: tuple[int, int]
    is_rounded: bool


def _listed(name: str, said: object) -> _Listed:
    """Read a model of a list.

    Raises:
        ValueError: why it cannot be taken over.
    """
    if not isinstance(said, dict):
        msg = "not an object"
        raise ValueError(msg)  # noqa: TRY004
    prices = [_listed_price(said, kind) for kind in ("input", "output")]
    _refuse_unusual("name", name)
    provider = said.get("litellm_provider")
    if not provider or not isinstance(provider, str):
        msg = "no provider"
        raise ValueError(msg)
    _refuse_unusual("provider", provider)
    nano = prices[0].nano, prices[1].nano
    return _Listed(name, provider, nano, any(price.is_rounded for price in prices))


def _refuse_unusual(what: str, name: str) -> None:
    try:
        is_as_stored = credit_models.ModelInput(name=name).name == name
    except ValueError:
        is_as_stored = False
    if not is_as_stored:
        msg = f"its {what} is empty, too long, or has blanks around it or control characters"
        raise ValueError(msg)


def _listed_price(said: Mapping[str, Any], kind: str) -> pricing.Exact:
    price = said.get(f"{kind}_cost_per_token")
    if price is None:
        msg = f"no {kind} price for tokens"
        raise ValueError(msg)
    if isinstance(price, bool) or not isinstance(price, int | Decimal):
        msg = f"its {kind} price is no number"
        raise ValueError(msg)  # noqa: TRY004
    exact = pricing.parse(price, times=1000)
    if price and not exact.nano:
        msg = f"its {kind} price is less than half a nano-credit for 1,000 tokens"
        raise ValueError(msg)
    return exact
