"""Providers, their models, and what these cost.

A model is added with its provider known and its price in the same transaction, so there is never a
model without a price. A price that was in force is never changed; a new one begins at a time.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from keystore import clock, db, models, pricing, sql
from keystore.admin.base import Admin
from keystore.errors import AlreadyExistsError, InvalidInputError, NotFoundError

_Q = sql.named("credits")
_NAMES = {"provider": _Q["provider_names"], "model": _Q["model_names"]}


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

    def add_provider(self, name: str) -> models.Provider:
        """Add a provider.

        Raises:
            InvalidInputError, AlreadyExistsError, WrongRoleError
        """
        wanted = models.validated(models.ProviderInput, "provider", name=name)
        with self._write():
            if db.scalar(self.file.conn, _Q["provider_id"], wanted.name) is not None:
                raise AlreadyExistsError(
                    f"provider {wanted.name!r} exists already.",
                    hint="`keystore provider list` shows the providers.",
                )
            self._db.table("Providers").insert(wanted.model_dump())
            return next(item for item in self._providers() if item.name == wanted.name)

    def providers(self) -> list[models.Provider]:
        """Return all providers, by name."""
        with self.file.read():
            return self._providers()

    def add_model(
        self, name: str, *, provider: str, input_per_1k: str, output_per_1k: str
    ) -> models.Model:
        """Add a model with its price, in credits for 1,000 tokens, in force from now on.

        Raises:
            NotFoundError: the provider; InvalidInputError, AlreadyExistsError, WrongRoleError
        """
        wanted = models.validated(models.ModelInput, "model", name=name)
        prices = _price(input_per_1k), _price(output_per_1k)
        with self._write():
            provider_id = self._find_near("provider", provider)
            if db.scalar(self.file.conn, _Q["model_id"], wanted.name) is not None:
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
    ) -> models.Model:
        """Give a model a new price, from now on or from a time to come.

        Raises:
            NotFoundError, WrongRoleError
            InvalidInputError: also for a time that is over: what was charged then stays explained.
        """
        prices = _price(input_per_1k), _price(output_per_1k)
        now = clock.utc_text()
        wanted = models.validated(models.PriceInput, "price", effective_from=effective_from or now)
        begins = clock.utc_text(wanted.effective_from.timestamp())
        if begins < now:
            raise InvalidInputError(
                f"effective_from {begins} is over.",
                hint="A price begins now or later; what was charged before stays explained.",
            )
        with self._write():
            model_id = self._find_near("model", name)
            self._insert_price(model_id, prices, begins)
            return self._model(name)

    def list_models(self, *, provider: str | None = None) -> list[models.Model]:
        """Return all models, or a provider's, with the price that is in force, by name."""
        with self.file.read():
            rows = self._rows("models", name=None, provider=provider, now=clock.utc_text())
            return [models.Model(**row) for row in rows]

    def prices(self, model: str) -> list[models.Price]:
        """Return the prices of a model, the newest first.

        Raises:
            NotFoundError
        """
        with self.file.read():
            model_id = self._find_near("model", model)
            return [models.Price(**row) for row in self._rows("prices", model_id=model_id)]

    def import_prices(self, path: Path) -> PriceImport:
        """Take a price list over: a JSON object of models, as LiteLLM keeps one, credits for USD.

        Each has ``litellm_provider``, and ``input_cost_per_token`` and ``output_cost_per_token``.
        What lacks one of them is left out and named with the reason; nothing is guessed. Models
        that are there get a new price if it differs. All of it, or nothing.

        Raises:
            InvalidInputError: it is no such file; WrongRoleError
        """
        try:
            with path.open(encoding="utf-8") as file:
                listed = json.load(file, parse_float=Decimal, parse_constant=Decimal)
        except (ValueError, RecursionError) as error:
            raise InvalidInputError(f"{path}: no JSON: {error}.") from error
        if not isinstance(listed, dict):
            raise InvalidInputError(f"{path}: not a JSON object of models.")
        done = PriceImport()
        now = clock.utc_text()
        with self._write():
            known = {
                row["name"]: row for row in self._rows("models", name=None, provider=None, now=now)
            }
            for name, said in listed.items():
                self._import_one(name, said, known.get(name), now, done)
        return done

    def _import_one(
        self, name: str, said: object, known: Mapping[str, Any] | None, now: str, done: PriceImport
    ) -> None:
        try:
            if not isinstance(said, dict):
                raise ValueError("not an object")  # noqa: TRY004, TRY301
            found = models.ModelInput(name=name)
            prices = _listed(said, "input"), _listed(said, "output")
            provider = models.ProviderInput(name=said.get("litellm_provider", "")).name
        except ValueError as error:
            done.skipped.append((name, _why(error)))
            return
        if any(price.is_rounded for price in prices):
            done.rounded.append(name)
        amounts = prices[0].nano, prices[1].nano
        if known is None:
            provider_id = db.scalar(self.file.conn, _Q["provider_id"], provider)
            if provider_id is None:
                provider_id = self._db.table("Providers").insert({"name": provider}).last_pk
                done.providers += 1
            self._insert_model(found.name, provider_id, amounts)
            done.added += 1
        elif (known["input_nano_per_1k"], known["output_nano_per_1k"]) == amounts:
            done.unchanged += 1
        else:
            self._insert_price(known["model_id"], amounts, now)
            done.repriced += 1

    def _insert_model(self, name: str, provider_id: int, prices: tuple[int, int]) -> None:
        self._db.table("Models").insert({"name": name, "provider_id": provider_id})
        model_id = int(db.scalar(self.file.conn, _Q["model_id"], name))
        self._insert_price(model_id, prices, clock.utc_text())

    def _insert_price(self, model_id: int, prices: tuple[int, int], begins: str) -> None:
        self.file.conn.execute(_Q["set_price"], (model_id, *prices, begins))

    def _find_near(self, kind: str, name: str) -> int:
        """Return the internal id of a provider or model.

        Raises:
            NotFoundError: names those that are spelled nearly so.
        """
        found = db.scalar(self.file.conn, _Q[f"{kind}_id"], name)
        if found is None:
            names = [row[0] for row in self.file.conn.execute(_NAMES[kind])]
            near = get_close_matches(name, names, n=3, cutoff=0.5)
            which = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise NotFoundError(
                f"there is no {kind} {name!r}.{which}",
                hint=f"`keystore {kind} list` shows the {kind}s; `keystore {kind} add` adds one.",
            )
        return int(found)

    def _providers(self) -> list[models.Provider]:
        return [models.Provider(**row) for row in self._rows("providers")]

    def _model(self, name: str) -> models.Model:
        row = next(iter(self._rows("models", name=name, provider=None, now=clock.utc_text())))
        return models.Model(**row)

    def _rows(self, statement: str, /, **values: object) -> list[dict[str, Any]]:
        return list(self._db.query(_Q[statement], values))


def _price(text: str) -> int:
    try:
        exact = pricing.parse(text)
    except ValueError as error:
        raise InvalidInputError(f"price: {error}.") from None
    if exact.is_rounded:
        raise InvalidInputError(
            f"price: {text} is no whole number of nano-credits (1e-9) for 1,000 tokens."
        )
    return exact.nano


def _listed(said: Mapping[str, Any], kind: str) -> pricing.Exact:
    price = said.get(f"{kind}_cost_per_token")
    if price is None or isinstance(price, bool) or not isinstance(price, int | Decimal):
        msg = f"no {kind} price for tokens"
        raise ValueError(msg)
    return pricing.parse(price, times=1000)


def _why(error: ValueError) -> str:
    first = str(error).splitlines()[0]
    return "no provider" if "provider" in first.lower() else first
