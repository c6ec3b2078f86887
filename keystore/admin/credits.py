"""Credits of accounts: granted, charged by the price in force, and never below zero.

Each row of the ledger moves the balance with it, in the database. A charge looks everything up
first, so what is missing is named before anything is written; then the ledger and the UsageLog get
their rows in one transaction. Asked again with the same request id, it answers what it has done.
"""

from typing import Any

from keystore import clock, db, models, pricing, sql
from keystore.admin.prices import PriceAdmin
from keystore.errors import (
    ConflictingRequestError,
    InsufficientCreditsError,
    InvalidInputError,
    NotFoundError,
)

_Q = sql.named("credits")


class CreditAdmin(PriceAdmin):
    """Grants and charges credits."""

    def grant(
        self, account: str, amount: str, *, request_id: str | None = None, note: str | None = None
    ) -> models.LedgerEntry:
        """Give an account an amount of credits, written as a decimal number.

        Raises:
            NotFoundError, InvalidInputError, WrongRoleError
            ConflictingRequestError: the request id was used for another grant.
        """
        try:
            exact = pricing.parse(amount)
        except ValueError as error:
            raise InvalidInputError(f"{error}.") from None
        if exact.is_rounded or not exact.nano:
            raise InvalidInputError(f"{amount} is not a whole number of nano-credits above zero.")
        wanted = models.validated(models.EntryInput, "grant", request_id=request_id, note=note)
        with self._write():
            account_id = self._find("account", account)
            values = {"kind": "grant", "amount_nano": exact.nano, **wanted.model_dump()}
            return self._done_before(account_id, values) or self._enter(account_id, values)

    def charge(
        self,
        account: str,
        model: str,
        *,
        input_tokens: int,
        output_tokens: int = 0,
        request_id: str | None = None,
        key: str | None = None,
    ) -> models.LedgerEntry:
        """Charge an account for a model's tokens, and log them as usage of ``key``.

        Without a key the usage is that of the account's session.

        Raises:
            NotFoundError: the account, key, model (with the nearest names) or its provider, or
                there is no price in force.
            InsufficientCreditsError: says what it costs and what there is.
            ConflictingRequestError: the request id was used for another charge.
            InvalidInputError, WrongRoleError
        """
        wanted = models.validated(
            models.ChargeInput,
            "charge",
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            request_id=request_id,
        )
        with self._write():
            account_id = self._find("account", account)
            principal_type, principal_id = self._principal(account_id, account, key)
            model_id = self._find_near("model", model)
            pricing_id, amount = self._cost(model_id, model, wanted)
            values: dict[str, Any] = {
                "kind": "charge",
                "amount_nano": -amount,
                "model": model,
                "model_pricing_id": pricing_id,
                **wanted.model_dump(),
            }
            before = self._done_before(account_id, values)
            if before is not None:
                return before
            balance = int(db.scalar(self.file.conn, _Q["balance"], account_id))
            if balance < amount:
                raise InsufficientCreditsError(
                    f"{account} has {pricing.text(balance)} credits; this costs "
                    f"{pricing.text(amount)}.",
                    hint="`keystore credits grant` gives it more.",
                )
            usage = {
                "principal_type": principal_type,
                "principal_id": principal_id,
                "account_id": account_id,
                "service_id": None,
                "amount": wanted.input_tokens + wanted.output_tokens,
                "request_id": wanted.request_id,
            }
            (usage_id,) = self.file.conn.execute(_Q["log_usage"], usage).fetchone()
            return self._enter(account_id, values | {"usage_id": usage_id})

    def balance(self, account: str) -> int:
        """Return what an account has, in nano-credits.

        Raises:
            NotFoundError
        """
        with self.file.read() as conn:
            return int(db.scalar(conn, _Q["balance"], self._find("account", account)))

    def statement(
        self, account: str, *, after: int = 0, limit: int = -1
    ) -> list[models.LedgerEntry]:
        """Return the ledger of an account after an entry, the oldest first.

        Raises:
            NotFoundError
        """
        with self.file.read():
            found = {"account_id": self._find("account", account), "after": after, "limit": limit}
            return [models.LedgerEntry(**row) for row in self._rows("statement", **found)]

    def _principal(self, account_id: int, account: str, key: str | None) -> tuple[str, int]:
        if key is None:
            return "session", account_id
        found = next(
            iter(self._rows("key_of_account", key=key.lower(), account_id=account_id)), None
        )
        if found is None:
            raise NotFoundError(
                f"{account} has no key {key}.", hint="`keystore key list` shows the keys."
            )
        return "api_key", found["api_key_id"]

    def _cost(self, model_id: int, model: str, wanted: models.ChargeInput) -> tuple[int, int]:
        """Return the price in force, and what the tokens cost by it."""
        values = {"model_id": model_id, "now": clock.utc_text()}
        found = self.file.conn.execute(_Q["price_in_force"], values).fetchone()
        pricing_id, input_per_1k, output_per_1k, provider, is_active = found
        if provider is None:
            raise NotFoundError(
                f"the provider of model {model!r} is missing.", hint="Run `keystore doctor`."
            )
        if pricing_id is None:
            raise NotFoundError(
                f"model {model!r} of {provider} has no price in force.",
                hint="`keystore model price` gives it one.",
            )
        if not is_active:
            raise NotFoundError(
                f"model {model!r} of {provider} is not active.",
                hint="`keystore model list` shows the models.",
            )
        return pricing_id, pricing.cost(
            wanted.input_tokens, wanted.output_tokens, input_per_1k, output_per_1k
        )

    def _done_before(self, account_id: int, values: dict[str, Any]) -> models.LedgerEntry | None:
        """Return what a request has done already, if it is the same one."""
        request_id = values["request_id"]
        if request_id is None:
            return None
        same = {"request_id": request_id, "account_id": account_id, "kind": values["kind"]}
        row = next(iter(self._rows("entry_of_request", **same)), None)
        if row is None:
            return None
        # (not the price: it may have changed between the two)
        is_grant = values["kind"] == "grant"
        fields = ["amount_nano"] if is_grant else ["model", "input_tokens", "output_tokens"]
        if any(row[name] != values.get(name) for name in fields):
            raise ConflictingRequestError(
                f"request {request_id} was another {values['kind']}, entry {row['ledger_id']}.",
                hint="A request id stands for one request; take a new one.",
            )
        return models.LedgerEntry(**row)

    def _enter(self, account_id: int, values: dict[str, Any]) -> models.LedgerEntry:
        balance = int(db.scalar(self.file.conn, _Q["balance"], account_id))
        empty = dict.fromkeys(
            ("note", "model", "model_pricing_id", "input_tokens", "output_tokens", "usage_id")
        )
        entry = {
            **empty,
            **values,
            "account_id": account_id,
            "balance_nano": balance + values["amount_nano"],
        }
        return models.LedgerEntry(**self._rows("insert_entry", **entry)[0])
